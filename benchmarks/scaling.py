"""``bench scaling``: cost and memory of the main ops against N, K, B and D, each beside its floor in the same run."""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import vtkernels as vt
from vtkernels.cli._errors import UsageError
from vtkernels.cli._files import check_out
from vtkernels.cli._stages import PeakMemory

from . import (
    attention_profile,
    attention_topk,
    coverage_select,
    crop_topk,
    floors,
    graph_propagate,
    inputs,
    scope_select,
    token_clusters,
    topk_select,
)
from .clock import Clock, Mode
from .environment import environment
from .harness import COLUMNS, FLOOR, OURS, Case, Work, complaints, default_out, failed, in_half, measure, results
from .ops import DTYPES, add_device, pretty, use_device
from .process import spoilt
from .sheet import Sheet

_COLUMNS = ("quantity", "axis", *COLUMNS, "bytes")
_FASTER = 0.15  # an exponent greater than that of the floor by more than this is no noise
_HEADS = 64  # width of an attention head: D grows by heads
MEBIBYTE = 1 << 20  # the memory of a process is read in pages and in batches: less cannot be told from nothing
_EXAMPLES = """examples:
  vtkernels bench scaling                                  to benchmarks/results/cpu_scaling.csv of a checkout
  vtkernels bench scaling --op scope_select --axis N --out scope.csv
  vtkernels bench scaling --quick                          three small points each: does it run?
  vtkernels bench scaling --device cuda                    on a GPU: device time of a CUDA graph, memory of the allocator
"""


@dataclass(frozen=True)
class Point:
    """Sizes of one measurement; an op ignores those it does not have."""

    N: int = 576
    K: int = 64
    B: int = 1
    D: int = 1024


@dataclass(frozen=True)
class Subject:
    """An op and the sizes that it depends on."""

    axes: str
    build: Callable[[Point], Work]


SUBJECTS = {
    "scope_select": Subject("NKBD", lambda p: scope_select.work(p.B, p.N, p.D, p.K)),
    "coverage_select": Subject("NKB", lambda p: coverage_select.work(p.B, p.N, p.K)),
    "graph_propagate": Subject("NBD", lambda p: graph_propagate.work(p.B, p.N, p.D)),
    "attention_topk": Subject("NKBD", lambda p: attention_topk.work(p.B, p.D // _HEADS, p.N + 1, _HEADS, p.K)),
    "attention_profile": Subject("NBD", lambda p: _profile(p)),
    "topk_select": Subject("NKB", lambda p: topk_select.work(p.B, p.N, p.K)),
    "crop_topk": Subject("NKBD", lambda p: crop_topk.work(p.B, p.N, p.D, p.K)),
    "token_clusters": Subject("NBD", lambda p: token_clusters.work(p.B, p.N, p.D)),
}
# N from a pooled frame to 20 crops; K at the five crops of LLaVA-NeXT; D up to a language model's
AXES = {
    "N": [Point(N=n) for n in (144, 288, 576, 1152, 2304, 5760, 11520)],
    "K": [Point(N=2880, K=k) for k in (32, 64, 128, 320, 640)],
    "B": [Point(B=b) for b in (1, 2, 4, 8, 16, 32, 64)],
    "D": [Point(D=d) for d in (256, 512, 1024, 2048, 4096)],
}
_QUICK = {
    "N": [Point(N=n) for n in (144, 288, 576)],
    "K": [Point(K=k) for k in (32, 64, 128)],
    "B": [Point(B=b) for b in (1, 2, 4)],
    "D": [Point(D=d) for d in (256, 512, 1024)],
}


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "scaling",
        help="cost and memory against N, K, B and D, each beside its floor",
        description="Times the main ops against tokens, budget, batch and width, each beside its floor, fits the exponent\n"
        "over the upper half of the points, and names what grows faster than its floor. Memory is what a call\n"
        "needs beyond its inputs and outputs, measured in a fresh process.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", action="append", choices=list(SUBJECTS), metavar="OP", help=f"only this op (repeatable): {', '.join(SUBJECTS)}")
    add("--axis", action="append", choices=list(AXES), help="only this axis (repeatable)")
    add("--no-memory", action="store_true", help="time only")
    add("--seconds", type=float, metavar="S", help="at least so long per point (default: 0.4, or 0.1 with --quick)")
    add("--longest", type=float, default=120.0, metavar="S",
        help="drop points that would take longer by the pace of the point before (default: %(default)s)")  # fmt: skip
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="of features, queries and keys (default: %(default)s)")
    add("--quick", action="store_true", help="three small points per axis: a smoke test, printed only")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="the CSV to write (default: benchmarks/results/DEVICE_scaling.csv for a whole run)",
    )
    add_device(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print every curve with its exponent, and save."""
    if options.seconds is not None and not options.seconds > 0:
        raise UsageError(f"argument --seconds: {options.seconds:g} is too small; give a number > 0")
    device = use_device(options)
    inputs.dtype = getattr(torch, options.dtype)
    whole = not (options.op or options.axis or options.quick or options.no_memory)
    name = device if options.dtype == "float32" else f"{device}_{options.dtype}"
    out = options.out or (default_out(f"{name}_scaling.csv") if whole else None)
    if out is not None:
        check_out(out)
    axes = {axis: (_QUICK if options.quick else AXES)[axis] for axis in options.axis or AXES}
    curves = [(op, axis) for op in options.op or SUBJECTS for axis in axes if axis in SUBJECTS[op].axes]
    memory = None if options.no_memory else Memory(device, options.threads)
    sheet = Sheet(out, _COLUMNS, committed=options.out is None)

    started, lost = time.perf_counter(), False
    for done, (op, axis) in enumerate(curves):
        left = f", about {pretty((time.perf_counter() - started) / done * (len(curves) - done))} left" if done else ""
        print(f"[{done + 1}/{len(curves)}{left}] {op} against {axis}", file=sys.stderr, flush=True)
        before, last = len(sheet.rows), None
        for point in axes[axis]:
            reason = too_much(axis, point, last, options.longest)
            if reason:
                print(f"  dropped: {op} at {axis} {getattr(point, axis)} and above: {reason}", flush=True)
                break
            begin = time.perf_counter()
            found = [{"quantity": "time", "axis": axis, "bytes": ""} | row for row in _timed(op, point, device, options)]
            last = point, max(0.0, time.perf_counter() - begin - _seconds(options))
            if memory is not None and any(row["p50_ms"] for row in found):
                found += [{"quantity": "memory", "axis": axis} | row for row in _needed(memory, op, point)]
            for complaint in complaints(found):
                print(f"  {complaint}", file=sys.stderr, flush=True)
            sheet.add(found)
            lost = spoilt(device) or any("NotCaptured" in row["gate"] for row in found)
            if lost:
                break
        for curve in fitted(sheet.rows[before:]):
            print(f"  {curve}", flush=True)
        if lost:
            print("this process is not to measure any more: the rest was not measured", file=sys.stderr, flush=True)
            break
    wrong = complaints(sheet.rows)
    written = sheet.close(good=not wrong)
    if written is not None:
        print(f"\nwrote {written}")
    return 1 if wrong or lost else 0


def _seconds(options: argparse.Namespace) -> float:
    return float(options.seconds or (0.1 if options.quick else 0.4))


def _timed(op: str, point: Point, device: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one point; one that says so where nothing could be measured."""
    case = _case(op, point) if options.dtype == "float32" else in_half(_case(op, point), options.dtype)
    mode = Mode("device", launch="graph") if device == "cuda" else Mode()
    try:
        return measure(case, Clock(device), [mode], seconds=_seconds(options), only=(floors.PRODUCT, floors.COPY))
    except Exception as error:
        return [failed(case, error)]


def _needed(memory: Memory, op: str, point: Point) -> list[dict[str, Any]]:
    """The rows of memory of one point, or one that says why there are none."""
    try:
        return list(memory.rows(op, point))
    except Exception as error:
        return [failed(_case(op, point), error) | {"bytes": ""}]


def too_much(axis: str, point: Point, last: tuple[Point, float] | None, longest: float) -> str:
    """Why a point is not measured: its gate does not fit into memory, or by the pace of the last point it takes too long."""
    needed = 24 * point.B * point.N**2 + 16 * point.B * point.N * point.D  # six matrices in the reference, four inputs
    if inputs.device.type == "cpu" and needed > available():
        return f"its gate needs about {needed / 2**30:.0f} GiB, {available() / 2**30:.0f} GiB are free"
    if last is not None:
        before, took = last
        guess = took * (getattr(point, axis) / getattr(before, axis)) ** (2 if axis == "N" else 1)
        if guess > longest:
            return f"about {pretty(guess)}, more than --longest {longest:g}"
    return ""


def available() -> int:
    """Bytes that a process can still have; the whole memory where the system does not say."""
    try:
        with open("/proc/meminfo") as info:
            return next(1024 * int(line.split()[1]) for line in info if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _case(op: str, point: Point) -> Case:
    """Ours, its reference for the gate, and its floor."""
    sizes = {"B": point.B, "N": point.N} | ({"D": point.D} if "D" in SUBJECTS[op].axes else {})
    sizes |= {"K": point.K} if "K" in SUBJECTS[op].axes else {}

    def build() -> Work:
        work = SUBJECTS[op].build(point)
        kept = {name: call for name, call in work.providers.items() if name in (OURS, "reference") or name.endswith(FLOOR)}
        return replace(work, providers=kept)

    return Case(op, sizes, build)


def _profile(point: Point) -> Work:
    """The reference stores a map per head: one head at a time it fits at every size here."""
    heads = point.D // _HEADS
    work = attention_profile.work(point.B, heads, point.N + 1, _HEADS)
    query, key = work.ours.args

    def by_head() -> tuple[torch.Tensor, ...]:
        parts = [vt.reference.attention_profile(query[:, h, None], key[:, h, None]) for h in range(heads)]
        return tuple(torch.stack(part).mean(0) for part in zip(*parts, strict=True))

    return replace(work, providers={**work.providers, "reference": by_head})


class Memory:
    """Bytes that a call needs beyond its inputs and outputs; of a floor, what it writes.

    On the CPU every point has a process of its own, in which the op has run once at the smallest size, so that nothing an
    earlier call left behind is in the way: the process's high-water mark, to within about a MiB.
    """

    def __init__(self, device: str, threads: int):
        self._device, self._threads = device, threads
        self._processes = None
        if device == "cpu":
            reason = PeakMemory(torch.device("cpu")).reason
            if reason:
                raise UsageError(f"memory cannot be measured: {reason}; give --no-memory")
            self._processes = multiprocessing.get_context("forkserver")  # forks a process that has torch but no threads yet
            self._processes.set_forkserver_preload([__name__])
            first = self._processes.Process(target=int)  # the start of the server, seconds, counts for no point
            first.start()
            first.join()

    def rows(self, op: str, point: Point) -> Iterator[dict[str, Any]]:
        """Rows of the CSV for ours and the floor."""
        if self._processes is None:
            torch.cuda.empty_cache()
            needed = peak(op, point)
        else:
            receive, send = self._processes.Pipe(duplex=False)
            child = self._processes.Process(target=_report, args=(send, op, point, self._threads, inputs.dtype))
            child.start()
            send.close()
            try:
                needed = receive.recv()
            except EOFError:
                child.join()
                raise RuntimeError(f"the process that measures the memory of {op} ended with {child.exitcode}") from None
            child.join()
        case, place = _case(op, point), environment(inputs.device)
        for provider, size in needed.items():
            dtype = str(inputs.dtype).removeprefix("torch.")
            head = {"op": op, "provider": provider, "dtype": dtype, "repeats": 1, "bytes": size}
            yield dict.fromkeys(COLUMNS, "") | head | case.sizes | place


def _report(pipe: Any, op: str, point: Point, threads: int, dtype: torch.dtype) -> None:
    torch.set_num_threads(threads)
    inputs.dtype = dtype
    pipe.send(peak(op, point))


def peak(op: str, point: Point) -> dict[str, int]:
    """Provider -> bytes, in this process."""
    work = SUBJECTS[op].build(point)
    ours = work.providers[OURS]
    SUBJECTS[op].build(Point(N=144)).providers[OURS]()
    meter = PeakMemory(inputs.device)
    meter.reset()
    made = results(ours)
    needed = {OURS: max(0, (meter.peak() or 0) - sum(x.nbytes for x in made))}
    return needed | {name: results(call)[0].nbytes for name, call in work.providers.items() if name.endswith(FLOOR)}


@dataclass(frozen=True)
class Curve:
    """One op, axis and quantity: points of ours and of the floor, and their exponents, None where there are too few."""

    op: str
    axis: str
    quantity: str
    floor_name: str
    ours: list[tuple[int, float]]
    floor: list[tuple[int, float]]

    @property
    def exponent(self) -> float | None:
        return exponent(self.ours, least=MEBIBYTE if self.quantity == "memory" else 0)

    @property
    def floor_exponent(self) -> float | None:
        return exponent(self.floor)

    @property
    def faster(self) -> bool:
        """Whether it grows faster than its floor, by more than noise."""
        ours, floor = self.exponent, self.floor_exponent
        return ours is not None and floor is not None and ours > floor + _FASTER

    def __str__(self) -> str:
        numbers = f"{self.axis}^{_two(self.exponent)}, {self.floor_name} {self.axis}^{_two(self.floor_exponent)}"
        return f"{self.op} {self.quantity}: {numbers}{'  <- grows faster than its floor' if self.faster else ''}"


def fitted(rows: Iterable[Mapping[str, Any]]) -> list[Curve]:
    """The curves of some rows, in their order, where there is something of ours and of the floor."""
    curves: dict[tuple[str, str, str], dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        key = (row["op"], row["axis"], row["quantity"])
        value = row["p50_ms"] if row["quantity"] == "time" else row["bytes"]
        if value != "":  # else it could not be measured
            curves.setdefault(key, {}).setdefault(row["provider"], []).append((int(row[row["axis"]]), float(value)))
    found = []
    for (op, axis, quantity), points in curves.items():
        floor = next((name for name in points if name != OURS), None)
        if floor is not None and OURS in points:
            found.append(Curve(op, axis, quantity, floor, points[OURS], points[floor]))
    return found


def exponent(points: Sequence[tuple[int, float]], *, least: float = 0) -> float | None:
    """The slope of log y over log x by least squares, over the upper half of the points, the middle one included.

    The lower half is where calls, threads and caches cost more than work. None where a value is not above ``least``: what
    cannot be told from nothing has no slope.
    """
    upper = sorted(points)[len(points) // 2 :]
    if len(upper) < 2 or any(y <= least for _, y in upper):
        return None
    return statistics.linear_regression([math.log(x) for x, _ in upper], [math.log(y) for _, y in upper]).slope


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A row per op: the exponent in each axis with that of the floor in parentheses; bold where it grows faster."""
    curves = {(curve.op, curve.quantity, curve.axis): curve for curve in fitted(rows)}
    columns = [("time", axis) for axis in AXES] + [("memory", axis) for axis in "NB"]
    heads = ["op", "floor", *(f"{quantity}, {axis}" for quantity, axis in columns)]
    lines = [heads, ["---"] * len(heads)]
    for op in dict.fromkeys(op for op, _, _ in curves):
        floor = next(curve.floor_name for (name, _, _), curve in curves.items() if name == op)
        cells = [_cell(curves.get((op, *column))) for column in columns]
        lines.append([f"`{op}`", floor.removesuffix(FLOOR), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(curve: Curve | None) -> str:
    if curve is None:
        return ""
    small = curve.quantity == "memory" and curve.exponent is None and len(curve.ours) > 1
    ours = "under 1 MiB" if small else _two(curve.exponent)
    return f"{f'**{ours}**' if curve.faster else ours} ({_two(curve.floor_exponent)})"


def _two(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
