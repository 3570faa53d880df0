"""Timing that can be believed: correctness first, providers interleaved, medians with spread, rows of one tidy CSV."""

from __future__ import annotations

import csv
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vtkernels
from vtkernels import triton
from vtkernels.cli._errors import first_line
from vtkernels.cli._files import replacing

from . import inputs
from .clock import Call, CaptureFailed, Clock, HostBound, Mode, calls_in_a_graph, captured, reads_from_host
from .environment import PLACE, environment, version
from .peers import PEERS

__all__ = ["PLACE", "RESULTS", "Case", "NotCaptured", "RedGate", "Work", "environment", "load", "measure", "save"]

RESULTS = Path(__file__).parent / "results"
SIZES = ("B", "N", "D", "H", "K")
_TIMES = ("p20_ms", "p50_ms", "p80_ms", "repeats")
COLUMNS = ("op", "shape", "provider", "backend", *SIZES, "dtype", "timing", "cache", "launch", *_TIMES, "gate", *PLACE)
OURS = "vtkernels"
FLOOR = " floor"  # a provider of this name ends so computes less than the op: nothing to compare
SAME, UNCOMPARED = "same", "not compared"  # of the column gate, beside "red: ..." and "failed: ..."

Results = tuple[torch.Tensor, ...]
Agree = Callable[[Results, Results], None]


class RedGate(AssertionError):
    """Two providers of a case differ."""


class NotCaptured(Exception):
    """A provider could not be captured into a CUDA graph, and this process is not to measure any more."""

    def __init__(self, provider: str, reason: str):
        super().__init__(f"{provider}: no CUDA graph: {reason}")
        self.provider = provider


class Crashed(Exception):
    """The process that measured a case did not come to its end."""


@dataclass(frozen=True)
class Work:
    """Inputs that are there, and the calls on them.

    ``providers`` all compute the same thing, floors excepted. ``agree(result, ours)`` raises where they do not; ``checks`` has
    that of single providers, None where there is nothing to compare. A call that returns nothing, because it works in place, is
    judged by its first argument. ``host_readers``: those that wait for their results on the way, so that on a GPU neither a
    graph can hold them nor the device's time be told from the host's.
    """

    providers: dict[str, Call]
    agree: Agree
    checks: Mapping[str, Agree | None] = field(default_factory=dict)
    host_readers: frozenset[str] = frozenset()

    @property
    def ours(self) -> partial[Any]:
        """Our own call, from whose function and arguments others are made."""
        call = self.providers[OURS]
        assert isinstance(call, partial)
        return call

    def check(self, provider: str) -> Agree | None:
        """What compares this provider with ours."""
        return None if provider == OURS or provider.endswith(FLOOR) else self.checks.get(provider, self.agree)


@dataclass(frozen=True)
class Case:
    """One op at one shape: ``build`` makes the inputs, so that a list of cases costs nothing."""

    op: str
    sizes: dict[str, int]
    build: Callable[[], Work]
    shape: str = ""
    dtype: str = "float32"


@dataclass
class Timed:
    """A provider of a case while it is measured."""

    call: Call
    first: float = 0.0  # seconds of a call before any is measured
    gate: str = ""
    samples: dict[Mode, list[float]] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.gate.startswith("failed")

    def fail(self, error: Exception) -> None:
        """There is no figure of it."""
        self.gate, self.samples = failure(error), {}


def measure(
    case: Case,
    clock: Clock,
    modes: Sequence[Mode],
    *,
    seconds: float,
    only: Sequence[str] = (),
    without: Sequence[str] = (),
    eager_only: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of the CSV: p20, p50 and p80 of every provider in every mode.

    The gate comes first: every provider runs once and is compared with ours. Then they take turns until ``seconds`` are over,
    in alternating order, so that noise and each other's traces hit them alike: five times at least, three times where one call
    takes more than two seconds. A red gate is written into the rows; a provider that raises has one row, which says what.
    ``only`` and ``without`` leave out others after the gate; ours stays, as the measure of the others. ``eager_only`` are not
    captured into CUDA graphs.

    Raises:
        NotCaptured: a capture failed.
    """
    work = case.build()
    providers = gate(case, work, clock)
    if only:
        providers = {name: timed for name, timed in providers.items() if name == OURS or name in only}
    providers = {name: timed for name, timed in providers.items() if name == OURS or name not in without}
    if clock.device.type == "cuda":  # the first call compiled and loaded
        for timed in (timed for timed in providers.values() if not timed.failed):
            timed.first = clock.seconds(timed.call)
    watches: list[tuple[str, Mode, Callable[[], float]]] = []
    for name, timed in providers.items():
        if not timed.failed:
            possible = able(name, timed, work, modes, eager_only, say)
            watches += [(name, mode, watch) for mode, watch in stopwatches(name, timed, clock, possible)]
    least = 3 if any(timed.first > 2 for timed in providers.values()) else 5
    started, rounds = time.perf_counter(), 0
    while watches and (rounds < least or time.perf_counter() - started < seconds):
        for name, mode, watch in list(watches if rounds % 2 == 0 else reversed(watches)):
            timed = providers[name]
            if timed.failed:
                continue
            try:
                timed.samples[mode].append(watch())
            except HostBound as reason:
                say(f"{name}: no device time, {mode.cache}, {mode.launch}: {reason}")
                if not timed.samples[mode]:
                    del timed.samples[mode]
                watches = [entry for entry in watches if entry[:2] != (name, mode)]
            except Exception as error:
                timed.fail(error)
        rounds += 1
    return [row for name, timed in providers.items() for row in _rows(case, name, timed)]


def able(
    name: str, timed: Timed, work: Work, modes: Sequence[Mode], eager_only: Sequence[str], say: Callable[[str], None]
) -> list[Mode]:
    """The modes that a provider can be measured in."""
    possible = list(modes)
    if any(mode.timing == "device" for mode in modes) and (name in work.host_readers or reads_from_host(timed.call)):
        say(f"{name}: no device time: it reads from the host")
        possible = [mode for mode in possible if mode.timing != "device"]
    if name in eager_only:
        possible = [mode for mode in possible if mode.launch != "graph"]
    return possible


def stopwatches(name: str, timed: Timed, clock: Clock, modes: Sequence[Mode]) -> Iterator[tuple[Mode, Callable[[], float]]]:
    """A stopwatch for each mode; providers that a graph can hold are captured here, before anything is timed."""
    graphs: dict[int, Call] = {}
    for mode in modes:
        call, count = timed.call, 1
        if mode.launch == "graph":
            count = calls_in_a_graph(mode, timed.first)
            if count not in graphs:
                try:
                    graphs[count] = captured(call, count)
                except CaptureFailed as error:
                    raise NotCaptured(name, first_line(error)) from error
            call = graphs[count]
        timed.samples[mode] = []
        yield mode, clock.stopwatch(call, mode, last=timed.first, count=count)


def _rows(case: Case, name: str, timed: Timed) -> Iterator[dict[str, Any]]:
    head = {"op": case.op, "shape": case.shape, "provider": name, "backend": backend(case, name), "dtype": case.dtype}
    row = dict.fromkeys(COLUMNS, "") | head | case.sizes | {"gate": timed.gate} | environment(inputs.device)
    if timed.failed:
        yield row
    for mode, samples in timed.samples.items():
        yield row | vars(mode) | percentiles(samples)


def failed(case: Case, error: Exception, dtype: str = "") -> dict[str, Any]:
    """The row of a case of which nothing could be measured."""
    timed = Timed(lambda: None)
    timed.fail(error)
    (row,) = _rows(replace(case, dtype=dtype or case.dtype), OURS, timed)
    return row


def failure(error: Exception) -> str:
    """What the column ``gate`` says of a provider that raised."""
    return f"failed: {reason(error)}"


def reason(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    kind, text = type(error).__name__, first_line(error)
    return kind if text == kind else f"{kind}: {text}"


def gate(case: Case, work: Work, clock: Clock) -> dict[str, Timed]:
    """Every provider once, floors included, each with what its comparison with ours gave.

    Ours is ``same`` if all that could be compared agree with it, and red if none could.
    """
    providers = {}
    ours: Results | None = None
    for name in sorted(work.providers, key=lambda name: name != OURS):
        timed = providers[name] = Timed(work.providers[name])
        try:
            clock.finished()
            begin = time.perf_counter()
            got = results(timed.call)
            clock.finished()
            timed.first = time.perf_counter() - begin
            if name == OURS:
                ours = got
            agree = work.check(name)
            if agree is not None:
                timed.gate = UNCOMPARED if ours is None else compared(agree, got, ours)
            elif name != OURS and not name.endswith(FLOOR):
                timed.gate = UNCOMPARED
        except Exception as error:
            timed.fail(error)
    if ours is not None:
        told = {name: timed.gate for name, timed in providers.items() if timed.gate.partition(":")[0] in (SAME, "red")}
        red = [f"{name}: {said.removeprefix('red: ')}" for name, said in told.items() if said != SAME]
        providers[OURS].gate = f"red: {'; '.join(red)}" if red else SAME if told else f"red: {UNCOMPARED}"
    return {name: providers[name] for name in work.providers}


def compared(agree: Agree, got: Results, ours: Results) -> str:
    """``same``, or ``red:`` and what differs."""
    try:
        agree(got, ours)
    except AssertionError as error:
        return f"red: {first_line(error)}"
    return SAME


def complaints(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What has to be said of some rows: each red gate and each failure once."""
    found: dict[str, None] = {}
    for row in rows:
        said, case = str(row["gate"]), f"{row['op']}, {', '.join(f'{name} {row[name]}' for name in SIZES if row.get(name))}"
        if said.startswith("failed"):
            found[f"{case}: {row['provider']} {said}"] = None
        elif said.startswith("red") and row["provider"] == OURS:
            found[f"red gate: {case}: {OURS} and others differ: {said.removeprefix('red: ')}"] = None
    return list(found)


def results(call: Call) -> Results:
    """What a call gives, as a tuple; a call in place gives its first argument."""
    got = call()
    if got is None:
        assert isinstance(call, partial)
        got = call.args[0]
    return got if isinstance(got, tuple) else (got,)


def quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    """p20, p50, p80, linear between the values: of three repeats too the spread is to be seen."""
    if len(values) == 1:
        return (values[0],) * 3
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def percentiles(samples: Sequence[float]) -> dict[str, Any]:
    """The columns of time: p20, p50, p80 in milliseconds and the number of repeats."""
    p20, p50, p80 = (f"{value:.5f}" for value in quantiles(samples))
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "repeats": len(samples)}


def backend(case: Case, provider: str) -> str:
    """What runs behind one of our own providers, and the version of a peer."""
    if provider == OURS:
        return vtkernels.which(case.op.partition("(")[0], inputs.device.type)
    if provider in PEERS:
        return version(provider)
    return provider if provider in ("triton", "reference") else ""


def with_triton(case: Case) -> Case:
    """The case with the Triton launcher called directly, where there is one: the op without checks and dispatch.

    Its result must be that of the op bit for bit wherever Triton is what the op runs.
    """
    op, device = case.op.partition("(")[0], inputs.device.type
    if op not in triton.KERNELS or device != "cuda" or not vtkernels.status("triton", device).available:
        return case  # in the interpreter there is nothing to time

    def build() -> Work:
        work = case.build()
        call = work.ours
        twin = partial(triton.load(op), *call.args, **call.keywords)
        if op == "compact_":  # in place: on rows of its own
            twin = partial(twin.func, twin.args[0].clone(), *twin.args[1:])
        exact = {"triton": identical} if vtkernels.which(op, device) == "triton" else {}
        return replace(work, providers={**work.providers, "triton": twin}, checks={**work.checks, **exact})

    return replace(case, build=build)


def in_half(case: Case, dtype: str) -> Case:
    """The case with half-precision inputs. The published computation rounds to half as it goes, so that it chooses otherwise.

    Only the reference is compared, which has float32 state as the kernels have: at most a share of 2% of the picks may differ.
    """

    def build() -> Work:
        work = case.build()
        if case.op == "compact_":  # rounds nothing
            return work
        others = dict.fromkeys(name for name in work.providers if name not in (OURS, "reference"))
        return replace(work, agree=partial(near, op=case.op.partition("(")[0]), checks={**work.checks, **others})

    return replace(case, build=build, dtype=dtype)


def near(got: Results, want: Results, *, op: str) -> None:
    """Half precision in, float32 inside: values to within rounding, picks but for near-ties."""
    for a, b in zip(got, want, strict=True):
        if b.is_floating_point():
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)
        elif op.endswith(("_select", "_topk")):
            same_picks(a, b, 0.02)
        else:  # labels, a place for each token
            _at_most((a != b).float().mean().item(), 0.02, "labels")


def same_picks(a: torch.Tensor, b: torch.Tensor, allowed: float = 0.0) -> None:
    """At most a share ``allowed`` of the picks [B, K] may differ (float ties), whatever their order."""
    if a.shape != b.shape:
        raise AssertionError(f"{list(a.shape)} picks, not {list(b.shape)}")
    missing = sum((Counter(want) - Counter(got)).total() for got, want in zip(a.tolist(), b.tolist(), strict=True))
    _at_most(missing / max(1, b.numel()), allowed, "picks")


def identical(a: Results, b: Results) -> None:
    """Bit for bit."""
    if not all(torch.equal(x, y) for x, y in zip(a, b, strict=True)):
        raise AssertionError("not the bits of the op")


def _at_most(share: float, allowed: float, what: str) -> None:
    if share > allowed:
        raise AssertionError(f"{share:.1%} of the {what} differ")


def save(rows: Iterable[Mapping[str, Any]], path: Path, columns: Iterable[str] = COLUMNS) -> None:
    """Write a CSV."""
    with replacing(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)


def default_out(name: str) -> Path:
    """The committed results of a checkout; an installed package has none, and writes where it is called."""
    return RESULTS / name if RESULTS.is_dir() else Path(f"vtkernels-{name}")


def load(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_case(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[dict[str, str], dict[str, Mapping[str, Any]]]]:
    """Rows of one case and mode together: what they share, and provider -> row. Without those that have no figure."""
    shared = ("op", "shape", *SIZES, "dtype", "timing", "cache", "launch")
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in (row for row in rows if row["p50_ms"]):
        groups.setdefault(tuple(str(row[name]) for name in shared), {})[row["provider"]] = row
    for key, providers in groups.items():
        yield dict(zip(shared, key, strict=True)), providers
