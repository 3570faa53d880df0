"""Timing that can be believed: correctness first, providers interleaved, medians with spread, one tidy CSV."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vtkernels
from vtkernels import triton

from .environment import PLACE, environment

RESULTS = Path(__file__).parent / "results"
SHAPE = ("B", "N", "D", "H", "K")
_TIMES = ("p20_ms", "p50_ms", "p80_ms", "repeats")
COLUMNS = ("op", "provider", *SHAPE, "dtype", *_TIMES, *PLACE)


@dataclass(frozen=True)
class Case:
    """One shape of one op: the providers to time and the gate they pass first.

    ``gate`` raises if the providers disagree. ``seconds`` bounds the time spent on the case.
    """

    op: str
    shape: dict[str, int]
    providers: dict[str, Callable[[], Any]]
    gate: Callable[[], None]
    dtype: str = "float32"
    seconds: float = 6.0


def measure(case: Case) -> list[dict[str, Any]]:
    """Rows of the CSV: p20, p50 and p80 of each provider, all providers in turn so that noise hits them alike."""
    case.gate()
    finished = torch.cuda.synchronize if torch.get_default_device().type == "cuda" else lambda: None
    for call in case.providers.values():
        call()
    finished()
    started = time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in case.providers}
    while len(next(iter(times.values()))) < 5 or time.perf_counter() - started < case.seconds:
        for name, call in case.providers.items():
            begin = time.perf_counter()
            call()
            finished()  # from the call to the result: what a caller waits for
            times[name].append(1e3 * (time.perf_counter() - begin))
    rows = []
    for name, values in times.items():
        values.sort()
        p20, p50, p80 = (values[int(q * (len(values) - 1))] for q in (0.2, 0.5, 0.8))
        row = dict.fromkeys(COLUMNS, "")
        row |= {"op": case.op, "provider": name, "dtype": case.dtype, **case.shape}
        row |= {"p20_ms": f"{p20:.4f}", "p50_ms": f"{p50:.4f}", "p80_ms": f"{p80:.4f}", "repeats": len(values)}
        rows.append(row | environment())
    return rows


def with_triton(case: Case) -> Case:
    """The case with the Triton launcher called directly, where there is one: the op without checks and dispatch.

    Its result must be that of the op bit for bit wherever Triton is what the op runs.
    """
    call, device = case.providers["vtkernels"], torch.get_default_device().type
    op = case.op.partition("(")[0]
    if op not in triton.KERNELS or not _calls(call, op):
        return case
    if device != "cuda" or not vtkernels.status("triton", device).available:
        return case  # in the interpreter there is nothing to time
    twin = partial(triton.load(op), *call.args, **call.keywords)

    def gate() -> None:
        case.gate()
        if vtkernels.which(op, device) == "triton":
            for a, b in zip(_results(twin()), _results(call()), strict=True):
                if not torch.equal(a, b):
                    raise AssertionError(f"{op}: the launcher and the op differ: no timing on a red gate")

    return replace(case, providers={**case.providers, "triton": twin}, gate=gate)


def in_half(case: Case, dtype: str) -> Case:
    """The case with half-precision inputs. The published computation rounds to half as it goes, so that it chooses otherwise.

    The gate is then the reference, which has float32 state as the kernels have: at most a share of 2% of the picks may differ.
    """
    call, op = case.providers["vtkernels"], case.op.partition("(")[0]
    if not _calls(call, op) or op == "compact_":  # which returns nothing, and rounds nothing
        return replace(case, dtype=dtype)

    def gate() -> None:
        want = getattr(vtkernels.reference, op)(*call.args, **call.keywords)
        for a, b in zip(_results(call()), _results(want), strict=True):
            if b.is_floating_point():
                torch.testing.assert_close(a, b, rtol=2e-3, atol=1e-5)
            else:
                same_picks(a, b, 0.02)

    return replace(case, dtype=dtype, gate=gate)


def _calls(call: Callable[[], Any], op: str) -> bool:
    """Whether a provider is the op itself."""
    return isinstance(call, partial) and call.func is getattr(vtkernels, op)


def _results(x: Any) -> tuple[torch.Tensor, ...]:
    return () if x is None else x if isinstance(x, tuple) else (x,)


def save(rows: Iterable[dict[str, Any]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def load(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def by_case(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[tuple[str, ...], dict[str, dict[str, Any]]]]:
    """Rows grouped by (op, shape, dtype): provider -> row."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = (row["op"], *(str(row[name]) for name in SHAPE), row["dtype"])
        groups.setdefault(key, {})[row["provider"]] = row
    yield from groups.items()


def same_picks(a: torch.Tensor, b: torch.Tensor, allowed: float = 0.0) -> None:
    """The gate of a selector: at most a share ``allowed`` of the picks may differ (float ties)."""
    different = (a.sort(1).values != b.sort(1).values).float().mean().item()
    if different > allowed:
        raise AssertionError(f"{different:.1%} of the picks differ: no timing on a red gate")
