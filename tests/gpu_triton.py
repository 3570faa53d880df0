"""Compiled Triton kernels on the GPU at hand: a program of its own, for the tests run with TRITON_INTERPRET=1.

    python tests/gpu_triton.py [op ...]                                          one op after the other, in this process
    python tests/gpu_triton.py [op ...] --jobs 12 --limit 90 --logs FOLDER       a process per op, with a time limit and a log

Each op at the sizes of the models: the same choice as the reference or a score within rounding of it; the same bits for an
image alone, in a batch and with other strides; the same bits from a CUDA graph; no synchronisation.

Nearly all of the time goes into compiling, so the matrix is thin: every size in float16; other dtypes, lengths and layouts at
one size. ``specializations.py`` counts what it makes Triton compile.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import arrange, assert_same, example, replace, rows_of, run
from processes import run_all
from torch import Tensor

import vtkernels as vt
from vtkernels import triton
from vtkernels._ops import ops
from vtkernels.triton import _launch

LAYOUTS = ("transposed", "batch_inside", "sliced", "misaligned")


class Case(NamedTuple):
    """A call, and the layouts in which it must have the same bits."""

    label: str
    arguments: dict[str, Any]
    layouts: tuple[str, ...] = ()


def cases(op: str, device: torch.device) -> Iterator[Case]:
    def case(batch: int, n: int, dtype: torch.dtype = torch.float16, lengths: bool = False, layouts: bool = False) -> Case:
        label = f"{op} B={batch} N={n} {str(dtype).removeprefix('torch.')}" + " ragged" * lengths
        arguments = replace(example(op, batch=batch, n=n, dtype=dtype, lengths=lengths), lambda x: x.to(device))
        return Case(label, arguments, LAYOUTS if layouts and op != "compact_" else ())

    yield case(3, 129, layouts=True)
    yield case(3, 129, lengths=True)
    yield case(3, 129, torch.float32)
    yield case(3, 129, torch.bfloat16)
    yield case(7, 17)
    yield case(2, 576)
    yield case(1, 2880)


def variants(case: Case) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Calls that must have the bits of ``case``, each for the rows in the slice: single images, other layouts."""
    batch = next(x for x in case.arguments.values() if isinstance(x, Tensor)).shape[0]
    for row in {0, batch - 1}:
        yield slice(row, row + 1), rows_of(case.arguments, [row])
    for layout in case.layouts:
        yield slice(None), replace(case.arguments, lambda x, how=layout: arrange(x, how))


def fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    return replace(arguments, lambda x: x.clone())


FEW = 0.02  # of the numbers of a result


def near(op: str, arguments: dict[str, Any], got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    """Floats to rounding. Two nearly equal scores may change places, and a cosine may be found on the other side of the
    threshold: a few numbers may differ where the op compares. Chosen tokens are compared as sets, as one exchange moves all
    that lie between in an ascending list."""
    assert [(x.dtype, x.shape) for x in got] == [(x.dtype, x.shape) for x in want]
    if op == "coverage_select":  # the gains lie beside the indices
        got, want = ((result[0], by_token(*result, n=arguments["weight"].shape[1])) for result in (got, want))
    for a, b in zip(got, want, strict=True):
        if a.is_floating_point():
            differs = ~torch.isclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
            few = FEW if op in ("coverage_select", "graph_propagate") else 0
        elif "k" in arguments:
            n = int(max(a.max(), b.max())) + 1
            differs = by_token(a, torch.ones_like(a), n=n) != by_token(b, torch.ones_like(b), n=n)
            few = FEW
        else:
            differs, few = a != b, FEW
        if differs.numel():
            assert differs.float().mean() <= few, f"{int(differs.sum())} of {differs.numel()} differ:\n{a}\n{b}"


def by_token(indices: Tensor, values: Tensor, *, n: int) -> Tensor:
    """[B, n]: ``values`` in the places ``indices`` of their tokens, 0 where a token is not chosen."""
    return values.new_zeros(len(values), n + 1).scatter_(1, indices + 1, values)[:, 1:]


def check(op: str, case: Case) -> None:
    with vt.backend("reference"):
        want = run(op, fresh(case.arguments))
    with vt.backend("triton"):
        run(op, fresh(case.arguments))  # compiles
        inputs = fresh(case.arguments)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = run(op, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        near(op, case.arguments, got, want)
        for rows, arguments in variants(case):
            assert_same(run(op, arguments), tuple(x[rows] for x in got))
        replayed(op, case.arguments, got)


def replayed(op: str, arguments: dict[str, Any], want: tuple[Tensor, ...]) -> None:
    """Captured once, replayed twice on inputs put back in place."""
    inputs, graph = fresh(arguments), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = getattr(ops, op).default(**inputs)
    for _ in range(2):
        for name, x in arguments.items():
            if isinstance(x, Tensor):
                inputs[name].copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        result = (inputs["tokens"],) if result is None else result if isinstance(result, tuple) else (result,)
        assert_same(tuple(result), want)


def here(names: list[str]) -> None:
    if _launch.interpreted():
        sys.exit("TRITON_INTERPRET is set: Triton compiles nothing; unset it")
    if not torch.cuda.is_available():
        sys.exit("needs a GPU")
    for op in names:
        for case in cases(op, torch.device("cuda")):
            try:
                check(op, case)
            except Exception as error:
                raise AssertionError(f"{case.label}: {type(error).__name__}: {error}") from error
            print(case.label, flush=True)
        print(f"{op}: as the reference, batch-invariant, capturable", flush=True)


def in_processes(names: list[str], jobs: int, limit: float, logs: Path) -> int:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt  # so that the processes are killed

    signal.signal(signal.SIGTERM, stop)
    commands = {op: [sys.executable, str(Path(__file__).resolve()), op] for op in names}
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    good = True
    for ended in run_all(commands, jobs=jobs, limit=limit, logs=logs, environment=environment):
        print(ended, flush=True)
        good &= ended.code == 0
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="*", help="default: every op with a Triton kernel")
    parser.add_argument("--jobs", type=int, help="a process per op, so many at a time")
    parser.add_argument("--limit", type=float, default=90, help="seconds after which a process is killed")
    parser.add_argument("--logs", type=Path, default=Path("build/gpu_triton"), help="folder for a log of each process")
    arguments = parser.parse_args()
    names = arguments.op or list(triton.KERNELS)
    if arguments.jobs is None:
        here(names)
        return 0
    return in_processes(names, arguments.jobs, arguments.limit, arguments.logs)


if __name__ == "__main__":
    sys.exit(main())
