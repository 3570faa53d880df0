"""Compiled Triton kernels on the GPU at hand: a program of its own, for the tests run with TRITON_INTERPRET=1.

    python tests/gpu_triton.py [op ...]

Each op at the sizes of the models: the same choice as the reference or a score within rounding of it; the same bits for an
image alone, in a batch and with other strides; the same bits from a CUDA graph; no synchronisation.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from cases import DTYPES, arrange, assert_same, example, replace, rows_of, run
from torch import Tensor

import vtkernels as vt
from vtkernels import triton
from vtkernels._ops import ops

CUDA = torch.device("cuda")


def calls(op: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for dtype in DTYPES[:-1]:
        for batch, n in ((7, 17), (3, 129), (2, 576), (1, 2880)):
            for lengths in (False, True):
                label = f"{op} B={batch} N={n} {dtype}" + " ragged" * lengths
                yield label, replace(example(op, batch=batch, n=n, dtype=dtype, lengths=lengths), lambda x: x.to(CUDA))


def fresh(arguments: dict[str, Any]) -> dict[str, Any]:
    return replace(arguments, lambda x: x.clone())


def near(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    """Floats to rounding; of integers all but the few that two nearly equal scores may exchange."""
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6, equal_nan=True)
        elif a.numel():
            assert (a != b).float().mean() <= 0.02, f"{a}\n{b}"


def check(op: str, arguments: dict[str, Any]) -> None:
    with vt.backend("reference"):
        want = run(op, fresh(arguments))
    with vt.backend("triton"):
        run(op, fresh(arguments))  # compiles
        inputs = fresh(arguments)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = run(op, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        near(got, want)
        batch = got[0].shape[0]
        for row in {0, batch - 1}:
            assert_same(run(op, rows_of(arguments, [row])), tuple(x[row : row + 1] for x in got))
        if op != "compact_":
            for layout in ("transposed", "batch_inside", "sliced", "misaligned"):
                assert_same(run(op, replace(arguments, lambda x, how=layout: arrange(x, how))), got)
        replayed(op, arguments, got)


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


def main() -> None:
    for op in sys.argv[1:] or triton.KERNELS:
        for label, arguments in calls(op):
            try:
                check(op, arguments)
            except Exception as error:
                raise AssertionError(f"{label}: {type(error).__name__}") from error
        print(f"{op}: as the reference, batch-invariant, capturable")


if __name__ == "__main__":
    main()
