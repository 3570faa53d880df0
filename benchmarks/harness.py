"""Timing that can be believed: correctness first, providers interleaved, medians with spread, one tidy CSV."""

from __future__ import annotations

import csv
import statistics
import time
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
from .clock import Call, Clock, Mode, captured
from .environment import PLACE, environment, version
from .peers import PEERS

__all__ = ["PLACE", "RESULTS", "Case", "RedGate", "Work", "environment", "load", "measure", "save"]

RESULTS = Path(__file__).parent / "results"
SIZES = ("B", "N", "D", "H", "K")
_TIMES = ("p20_ms", "p50_ms", "p80_ms", "repeats")
COLUMNS = ("op", "shape", "provider", "backend", *SIZES, "dtype", "timing", "cache", "launch", *_TIMES, *PLACE)
OURS = "vtkernels"
FLOOR = " floor"  # a provider of this name ends so computes less than the op: nothing to compare

Results = tuple[torch.Tensor, ...]


class RedGate(AssertionError):
    """Two providers of a case differ: there will be no figure."""


@dataclass(frozen=True)
class Work:
    """Inputs that are there, and the calls on them.

    ``providers`` all compute the same thing, floors excepted. ``agree(result, ours)`` raises where they do not; a call that
    returns nothing, because it works in place, is judged by its first argument.
    """

    providers: dict[str, Call]
    agree: Callable[[Results, Results], None]

    @property
    def ours(self) -> partial[Any]:
        """Our own call, from whose function and arguments others are made."""
        call = self.providers[OURS]
        assert isinstance(call, partial)
        return call


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
    first: float  # seconds of its first call
    samples: dict[Mode, list[float]] = field(default_factory=dict)


def measure(
    case: Case,
    clock: Clock,
    modes: Sequence[Mode],
    *,
    seconds: float,
    only: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rows of the CSV: p20, p50 and p80 of every provider in every mode.

    The gate comes first: every provider runs once and is compared with ours. Then they take turns until ``seconds`` are over,
    in alternating order, so that noise and each other's traces hit them alike: five times at least, three times where one call
    takes more than two seconds. ``only`` leaves out the others after the gate; ours stays, as the measure of the others.
    """
    work = case.build()
    providers = gate(case, work, clock)
    if only:
        providers = {name: timed for name, timed in providers.items() if name == OURS or name in only}
    watches = []
    for name, timed in providers.items():
        calls = {"eager": timed.call}
        if any(mode.launch == "graph" for mode in modes):
            try:
                calls["graph"] = captured(timed.call)
            except Exception as error:  # torch's own or CUDA's, where a computation reads from the host
                clock.finished()
                say(f"{case.op}, {name}: no CUDA graph: {first_line(error)}")
        for mode in modes:
            if mode.launch in calls:
                watch = clock.stopwatch(calls[mode.launch], mode, last=timed.first)
                watches.append((watch, timed.samples.setdefault(mode, [])))
    least = 3 if any(timed.first > 2 for timed in providers.values()) else 5
    started, rounds = time.perf_counter(), 0
    while rounds < least or time.perf_counter() - started < seconds:
        for watch, samples in watches if rounds % 2 == 0 else reversed(watches):
            samples.append(watch())
        rounds += 1
    place = environment(inputs.device)
    rows = []
    for name, timed in providers.items():
        head = {"op": case.op, "shape": case.shape, "provider": name, "backend": backend(case, name), "dtype": case.dtype}
        for mode, samples in timed.samples.items():
            rows.append(dict.fromkeys(COLUMNS, "") | head | case.sizes | vars(mode) | percentiles(samples) | place)
    return rows


def gate(case: Case, work: Work, clock: Clock) -> dict[str, Timed]:
    """Every provider once, floors included; raises ``RedGate`` unless all results are what ours is."""
    providers = {}
    ours: Results = ()
    for name in sorted(work.providers, key=lambda name: name != OURS):
        clock.finished()
        begin = time.perf_counter()
        got = results(work.providers[name])
        clock.finished()
        providers[name] = Timed(work.providers[name], time.perf_counter() - begin)
        if name == OURS:
            ours = got
        if name == OURS or name.endswith(FLOOR):
            continue
        try:
            work.agree(got, ours)
        except AssertionError as error:
            what = ", ".join(f"{size} {value}" for size, value in case.sizes.items())
            raise RedGate(f"{case.op}, {what}: {name} and {OURS} differ: {first_line(error)}") from error
    return {name: providers[name] for name in work.providers}


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
        if op == "compact_":  # in place: on rows of its own, judged by the gate as every provider is
            twin = partial(twin.func, twin.args[0].clone(), *twin.args[1:])
        elif vtkernels.which(op, device) == "triton":
            for a, b in zip(results(twin), results(call), strict=True):
                if not torch.equal(a, b):
                    raise RedGate(f"{case.op}, {case.shape}: the launcher and the op differ")
        return replace(work, providers={**work.providers, "triton": twin})

    return replace(case, build=build)


def in_half(case: Case, dtype: str) -> Case:
    """The case with half-precision inputs. The published computation rounds to half as it goes, so that it chooses otherwise.

    The gate is then the reference, which has float32 state as the kernels have: at most a share of 2% of the picks may differ.
    """

    def build() -> Work:
        work = case.build()
        if case.op == "compact_":  # rounds nothing
            return work
        op, call = case.op.partition("(")[0], work.ours
        want = results(partial(getattr(vtkernels.reference, op), *call.args, **call.keywords))
        try:
            near(results(call), want)
        except AssertionError as error:
            raise RedGate(f"{case.op}, {case.shape}, {dtype}: reference and {OURS} differ: {first_line(error)}") from error
        return replace(work, agree=lambda got, ours: None)

    return replace(case, build=build, dtype=dtype)


def near(got: Results, want: Results) -> None:
    """Half precision in, float32 inside: values to within rounding, picks but for near-ties."""
    for a, b in zip(got, want, strict=True):
        if b.is_floating_point():
            torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)
        else:
            same_picks(a, b, 0.02)


def same_picks(a: torch.Tensor, b: torch.Tensor, allowed: float = 0.0) -> None:
    """At most a share ``allowed`` of the picks may differ (float ties)."""
    different = (a.sort(1).values != b.sort(1).values).float().mean().item()
    if different > allowed:
        raise AssertionError(f"{different:.1%} of the picks differ")


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
    """Rows of one case and mode together: what they share, and provider -> row."""
    shared = ("op", "shape", *SIZES, "dtype", "timing", "cache", "launch")
    groups: dict[tuple[str, ...], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[name]) for name in shared), {})[row["provider"]] = row
    for key, providers in groups.items():
        yield dict(zip(shared, key, strict=True)), providers
