"""``bench ops``: every op against what people run today, its providers side by side."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from vtkernels._schemas import SCHEMAS
from vtkernels.cli import _arguments
from vtkernels.cli._console import table
from vtkernels.cli._errors import UsageError
from vtkernels.cli._files import check_out

from . import headline, inputs, registry
from .clock import Clock, Mode, modes
from .harness import (
    COLUMNS,
    OURS,
    SIZES,
    Case,
    Crashed,
    NotCaptured,
    by_case,
    complaints,
    default_out,
    failed,
    in_half,
    measure,
    with_triton,
)
from .process import spoilt, start_again, watched
from .registry import Shape
from .sheet import Sheet

DTYPES = ("float32", "float16", "bfloat16")
_EXAMPLES = """examples:
  vtkernels bench ops                                      the default shapes, to benchmarks/results/cpu.csv of a checkout
  vtkernels bench ops --op scope_select --out scope.csv    one op
  vtkernels bench ops --shape llava-next-5-crops --shape llava-1.5-7b-batch-64 --out next.csv
  vtkernels bench ops --quick --op topk_select             seconds: does it run? Printed only, as all that is cut short
  vtkernels bench ops --device cuda --dtype float16        on a GPU: call and device time, warm and cold, eager and CUDA graph
  vtkernels bench ops --device cuda --dtype float16 --headline --seconds 0.3 --out gpu.csv   the few cases that have targets
  vtkernels bench ops --list                               the shapes, and the configurations they are taken from
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "ops",
        help="every op, its providers side by side",
        description="Times every op against the published computation, its reference, floors and installed peers at the\n"
        "shapes of real models. Nothing is timed before its result has been compared with that of the others.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", action="append", choices=list(SCHEMAS), metavar="OP", help="only this op (repeatable)")
    add("--shape", action="append", metavar="NAME", help="only this shape, with all its budgets (repeatable)")
    add("--all-shapes", action="store_true", help="the whole registry: takes hours on a small CPU")
    add("--headline", action="store_true", help="few cases, for a short run on a GPU, beside the targets of the kernels")
    add("--provider", action="append", metavar="NAME", help="time only this one beside vtkernels (repeatable)")
    add("--list", action="store_true", help="print the shapes and leave")
    add("--seconds", type=float, metavar="S", help="at least so long per case (default: 2, or 0.2 with --quick)")
    add("--quick", action="store_true", help="one shape and little time: a smoke test, no figures to quote")
    add("--cold", action="store_true", help="on a CPU also with empty caches (a GPU is always measured both ways)")
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="of features, queries and keys (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="the CSV to write (default: benchmarks/results/DEVICE.csv for a whole run)")
    add("--start", type=int, default=1, metavar="N",
        help="leave out the first N - 1 cases and keep the rows that the CSV has, after a run that ended early")  # fmt: skip
    add("--eager-only", action="append", metavar="NAME", help="capture this provider into no CUDA graph (repeatable)")
    add("--limit", type=float, default=60.0, metavar="S",
        help="on a GPU: give up a case after so long, and go on with the next (default: %(default)s)")  # fmt: skip
    # what the processes of one run on a GPU tell each other
    add("--red", action="store_true", help=argparse.SUPPRESS)
    add("--crashed", help=argparse.SUPPRESS)
    add("--watched", type=Path, help=argparse.SUPPRESS)
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a benchmark runs."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="torch.set_num_threads (default: %(default)s)")


def use_device(options: argparse.Namespace) -> str:
    """Put the inputs on the device of the options, fix the threads, and return the device's type."""
    _arguments.check_counts(options, "threads")
    device = _arguments.torch_device(options.device)
    torch.set_num_threads(options.threads)
    inputs.device = device
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)
    return device.type


def run(options: argparse.Namespace) -> int:
    """Measure, print every case as it is done, and save."""
    if options.list:
        listing()
        return 0
    if options.seconds is not None and not options.seconds > 0:
        raise UsageError(f"argument --seconds: {options.seconds:g} is too small; give a number > 0")
    _arguments.check_counts(options, "start")
    if options.headline and (options.shape or options.all_shapes or options.quick):
        raise UsageError("argument --headline: its cases have shapes of their own; leave out --shape, --all-shapes and --quick")
    todo = list(headlines(options.op) if options.headline else chosen(options))
    if options.start > len(todo) + bool(options.crashed):
        raise UsageError(f"argument --start: {options.start} is out of range; give 1 to {len(todo)}")
    if options.watched is None and _arguments.torch_device(options.device).type == "cuda":
        return watched(options.limit)
    device = use_device(options)
    inputs.dtype = getattr(torch, options.dtype)
    whole = not (options.op or options.shape or options.provider or options.quick or options.headline)
    name = device if options.dtype == DTYPES[0] else f"{device}_{options.dtype}"
    out = options.out or (default_out(f"{name}.csv") if whole else None)
    if out is not None:
        check_out(out)
    sheet = Sheet(out, COLUMNS, committed=options.out is None, resumed=options.start > 1)
    if options.crashed:
        sheet.add([failed(todo[options.start - 2], Crashed(options.crashed), options.dtype)])
    for place, case in announced(todo, options.start):
        if options.watched is not None:
            options.watched.write_text(str(place))
        try:
            sheet.add(measured(case, device, options))
        except NotCaptured as error:
            _say(f"{error}; a fresh process measures this case again")
            _go_on(sheet, place, "--eager-only", error.provider)
        if place < len(todo) and spoilt(device):
            _say("the GPU fails in this process; a fresh one goes on")
            _go_on(sheet, place + 1)
    wrong = complaints(sheet.rows)
    written = sheet.close(good=not wrong)
    if written is not None:
        print(f"\nwrote {written}")
    if wrong:
        print("\n".join(wrong), file=sys.stderr)
    check_providers(options.provider or (), sheet.rows)
    return 1 if wrong or options.red else 0


def _go_on(sheet: Sheet, place: int, *arguments: str) -> NoReturn:
    red = ["--red"] if complaints(sheet.rows) else []
    start_again("--start", str(place), "--crashed", "", *red, *arguments)  # of a crash before, the row is there


def measured(case: Case, device: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one case, printed; one that says so where nothing could be measured."""
    seconds = options.seconds or (0.2 if options.quick else 2.0)
    if options.dtype != "float32":
        case = in_half(case, options.dtype)
    try:
        rows = measure(
            with_triton(case), Clock(device), modes(device, cold=options.cold), seconds=seconds, only=options.provider or (),
            without=headline.WITHOUT if options.headline else (), eager_only=options.eager_only or (), say=_say,
        )  # fmt: skip
    except NotCaptured:
        raise
    except Exception as error:
        rows = [failed(case, error)]
    show(rows)
    for complaint in complaints(rows):
        _say(complaint)
    return rows


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


def chosen(options: argparse.Namespace) -> Iterator[Case]:
    """The cases that shapes and ops were chosen of."""
    shapes = registry.chosen(options.shape, everything=options.all_shapes, quick=options.quick)
    return cases(options.op or SCHEMAS, shapes)


def headlines(ops: Iterable[str] | None) -> Iterator[Case]:
    """The cases of ``headline.SELECTION``; of an op asked for that has none there, one."""
    for op in ops or headline.SELECTION:
        yield from (case for case in cases([op], headline.shapes(op)) if case.op == op)


def cases(ops: Iterable[str], shapes: Iterable[Shape]) -> Iterator[Case]:
    """The cases of these ops at these shapes; what would be a shape already there (crops of the same tower) only once."""
    shapes, seen = list(shapes), set()
    for op in ops:
        for case in importlib.import_module(f".{op}", __package__).cases(shapes):
            key = (case.op, *case.sizes.items())
            if key not in seen:
                seen.add(key)
                yield case


def announced(todo: list[Case], start: int = 1) -> Iterator[tuple[int, Case]]:
    """The cases from the ``start``-th on, named on standard error before they start, with the time left by the pace so far."""
    started = time.perf_counter()
    for done, case in enumerate(todo[start - 1 :]):
        place = start + done
        pace = (time.perf_counter() - started) / done if done else 0.0
        left = f", about {pretty(pace * (len(todo) - place + 1))} left" if done else ""
        print(f"[{place}/{len(todo)}{left}] {case.op}, {case.shape}: {in_words(case.sizes)}", file=sys.stderr, flush=True)
        yield place, case


def pretty(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def in_words(sizes: Mapping[str, Any]) -> str:
    """B 1, N 576, ...; what a case does not have is left out."""
    return ", ".join(f"{name} {sizes[name]}" for name in SIZES if sizes.get(name))


def show(rows: list[dict[str, Any]]) -> None:
    """One line per provider and mode: median, spread, how many times slower than vtkernels it is; and targets, if any."""
    for shared, providers in by_case(rows):
        ours = float(providers[OURS]["p50_ms"]) if OURS in providers else None
        mode = Mode(shared["timing"], shared["cache"], shared["launch"])
        label = "" if mode == Mode() else f"{mode.timing}, {mode.cache}, {mode.launch}"
        for name, row in providers.items():
            p20, p50, p80 = (float(row[f"p{q}_ms"]) for q in (20, 50, 80))
            ratio = "" if ours is None else f"{p50 / ours:.2f}x"
            line = f"  {name:<20} {p50:10.4f} ms  ({p20:.4f} to {p80:.4f})  {ratio:>9}  {label}"
            print(line.rstrip(), flush=True)
    for row, microseconds, limit, met in headline.verdicts(rows):
        verdict = "met" if met else "MISSED"
        print(f"  target {limit:g} us: {verdict}, {microseconds:.1f} us of device time, {row['backend']}", flush=True)


def check_providers(names: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    known = list(dict.fromkeys(row["provider"] for row in rows))
    for name in names:
        if name not in known:
            raise UsageError(f"argument --provider: {name!r} timed nothing; without --provider the cases show their names")


def listing() -> None:
    """The registry as a table; those of a default run first."""
    order = sorted(registry.SHAPES, key=lambda shape: shape.name not in registry.DEFAULT)
    rows = [
        [s.name, s.source, str(s.rows), str(s.tokens), f"{s.tower}, {s.language}", ", ".join(map(str, s.keeps))] for s in order
    ]
    headers = ["shape", "taken from", "B", "N", "D of tower\nand model", "K"]
    table(headers, rows, title=f"A default run measures the first {len(registry.DEFAULT)}.", left=2)
