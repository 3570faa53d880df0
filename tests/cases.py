"""What the tests of all ops share: sizes, dtypes, memory layouts, one example call of every op, comparisons."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from emulated import GPUS, gpus_of
from torch import Tensor

import vtkernels as vt
from vtkernels._schemas import SCHEMAS
from vtkernels.triton import KERNELS
from vtkernels.triton._launch import interpreted

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZES = (1, 2, 15, 17, 33, 63, 129, 151)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda t: str(t).removeprefix("torch."))
each_int = pytest.mark.parametrize("int_dtype", (torch.int32, torch.int64), ids=("int32", "int64"))


@functools.cache
def backends_of(op: str) -> tuple[str, ...]:
    """The backends that have ``op`` on this machine's CPU, the automatic choice first; Triton and CUDA as far as they can be
    interpreted and emulated."""
    interpreted = ("triton",) if op in KERNELS and vt.status("triton").available else ()
    with vt.backend("auto"):
        return tuple(dict.fromkeys((vt.which(op), *interpreted, *gpus_of(op), "reference")))


def dtypes_of(backend: str) -> tuple[torch.dtype, ...]:
    """The dtypes that ``backend`` takes: GPU kernels keep float32 state and refuse float64 (``test_triton.py``). What depends
    on the dtype does not depend on the GPU, so half types are emulated on one; but wide tiles have nothing else."""
    if backend == "sm_80":
        return DTYPES[:1]
    if backend == "sm_90 wide":
        return DTYPES[1:3]
    return DTYPES[:-1] if backend == "triton" or backend in GPUS else DTYPES


def slow(backend: str | None) -> bool:
    """Interpreted or emulated, so that tests ask less of it."""
    return backend == "triton" or backend in GPUS


def fixed_order(backend: str) -> bool:
    """Whether copies of a row have the same products wherever they stand. torch and NumPy, which multiply in the reference and
    in Triton's interpreter, add in an order that depends on the place in the matrix and on the processor."""
    return backend != "reference" and not (backend == "triton" and interpreted())


def on_ops(*ops: str) -> pytest.MarkDecorator:
    """Parametrises ``op`` and ``backend`` (all ops by default). Ops without an example fail in one test alone."""
    pairs = [(op, backend) for op in ops or EXAMPLES if op in EXAMPLES for backend in backends_of(op)]
    return pytest.mark.parametrize(("op", "backend"), pairs, indirect=["backend"])


# ------------------------------------------------------------------------------------------------ inputs


class Draw:
    """Deterministic tensors: float64 draws rounded to ``dtype``."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32):
        self.generator, self.dtype = torch.Generator().manual_seed(seed), dtype

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)


def ragged(batch: int, n: int, dtype: torch.dtype = torch.int64) -> Tensor:
    """Lengths of every kind: full, half, none, beyond N, negative, one."""
    kinds = (n, n // 2, 0, n + 5, -2, 1, max(n - 1, 0))
    return torch.tensor([kinds[b % len(kinds)] for b in range(batch)], dtype=dtype)


def similar(draw: Draw, batch: int, n: int, d: int) -> Tensor:
    """Features of which some are alike: a graph with edges of every weight."""
    return draw.normal(batch, 1, d) + draw.normal(batch, n, d)


def row_width(n: int) -> int:
    """Tokens in an image row of an example with ``n`` tokens."""
    return 3 if n % 3 == 0 else 1


def kept(draw: Draw, batch: int, n: int, k: int) -> Tensor:
    """Indices as ``compact_`` takes them: ascending, distinct, -1 at the end of every other row."""
    rows = [torch.randperm(n, generator=draw.generator)[:k].sort().values for _ in range(batch)]
    indices = torch.stack(rows) if rows else torch.zeros(0, k, dtype=torch.int64)
    indices[1::2, k - k // 4 :] = -1
    return indices


EXAMPLES: dict[str, Callable[[Draw, int, int, int], dict[str, Any]]] = {
    "scope_select": lambda g, b, n, k: {"features": g.normal(b, n, 9), "saliency": g.uniform(b, n), "k": k},
    "coverage_select": lambda g, b, n, k: {"similarity": g.normal(b, n + 3, n), "weight": g.uniform(b, n), "k": k},
    "graph_propagate": lambda g, b, n, k: {"features": similar(g, b, n, 9)},
    "cls_attention": lambda g, b, n, k: {"query": g.normal(b, 3, 8), "key": g.normal(b, 3, n + 1, 8)},
    "attention_profile": lambda g, b, n, k: {"query": g.normal(b, 3, n + 1, 8), "key": g.normal(b, 3, n + 1, 8)},
    "topk_select": lambda g, b, n, k: {"scores": g.normal(b, n), "k": k},
    "attention_topk": lambda g, b, n, k: {"query": g.normal(b, 3, 8), "key": g.normal(b, 3, n + 1, 8), "k": k},
    "row_topk": lambda g, b, n, k: {"scores": g.normal(b, n), "rows": k // row_width(n), "width": row_width(n)},
    "crop_topk": lambda g, b, n, k: {
        "attention": g.uniform(b, n),
        "features": similar(g, b, n, 9),
        "k": k,
        "crops": 4,
        "variant": "full",
    },
    "token_clusters": lambda g, b, n, k: {"features": similar(g, b, n, 9), "threshold": 0.75},
    "prompt_relevance": lambda g, b, n, k: {"vision": g.normal(b, n, 9), "text": g.normal(b, 6, 9)},
    "cluster_topk": lambda g, b, n, k: {"labels": g.integers(0, n // 2 + 1, b, n), "relevance": g.normal(b, n), "k": k},
    "route_tokens": lambda g, b, n, k: {
        "features": g.normal(b, n, 9),
        "indices": kept(g, b, n, k),
        "labels": g.integers(0, 2, b, n),
    },
    "merge_tokens": lambda g, b, n, k: {
        "tokens": g.normal(b, n, 9),
        "indices": kept(g, b, n, k),
        "assignment": g.integers(-1, k, b, n),
    },
    "gather_tokens": lambda g, b, n, k: {"tokens": g.normal(b, n, 9), "indices": g.integers(-1, n, b, k)},
    "compact_": lambda g, b, n, k: {"tokens": g.normal(b, n, 9), "indices": kept(g, b, n, k)},
}


def takes_lengths(op: str) -> bool:
    return "Tensor? lengths" in SCHEMAS[op]


def example(
    op: str, *, batch: int = 3, n: int = 17, k: int | None = None, dtype=torch.float32, seed: int = 0, lengths: bool = False
) -> dict[str, Any]:
    """Arguments of a good call, by name. ``lengths``: ragged rows, where the op has them."""
    arguments = EXAMPLES[op](Draw(seed, dtype), batch, n, (n + 1) // 2 if k is None else k)
    if lengths and takes_lengths(op):
        arguments["lengths"] = ragged(batch, n + ("key" in arguments))
    if lengths and op == "prompt_relevance":
        arguments["text_lengths"] = ragged(batch, arguments["text"].shape[1])
    return arguments


def replace(arguments: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """The same arguments with every tensor changed."""
    return {name: change(x) if isinstance(x, Tensor) else x for name, x in arguments.items()}


LAYOUTS = ("transposed", "batch_inside", "sliced", "misaligned", "expanded", "requires_grad")


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same values (``expanded``: the first row's, repeated) in another memory layout, with poison in the gaps."""
    poison = float("nan") if x.is_floating_point() else -7777
    if layout == "transposed":
        return x.mT.contiguous().mT if x.dim() > 1 else x
    if layout == "batch_inside":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "sliced":
        view = x.new_full([2 * s + 1 for s in x.shape], poison)[(slice(1, None, 2),) * x.dim()]
        return view.copy_(x)
    if layout == "misaligned":
        return x.new_full((x.numel() + 1,), poison)[1:].view(x.shape).copy_(x)
    if layout == "expanded":
        return x[:1].expand_as(x)
    if layout == "requires_grad":
        return x.clone().requires_grad_(x.is_floating_point())
    assert layout == "contiguous"
    return x.contiguous()


# ------------------------------------------------------------------------------------------------ calls and comparisons


def run(op: str, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """All results of the typed wrapper; of an op in place, what it wrote."""
    result = getattr(vt, op)(**arguments)
    if op == "compact_":
        assert result is None
        return (arguments["tokens"],)
    return result if isinstance(result, tuple) else (result,)


def bits(x: Tensor) -> Tensor:
    return x.detach().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def assert_same(got: tuple[Tensor, ...], want: tuple[Tensor, ...], backend: str = "native") -> None:
    """Bit for bit; the reference is made of library products and promises its floats to rounding only."""
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if backend == "reference" and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)
        else:
            assert torch.equal(bits(a), bits(b)), f"{a}\n{b}"


def assert_copied(got: Tensor, want: Tensor) -> None:
    """Bit for bit, but any NaN is as good as any other."""
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(bits(got.masked_fill(got.isnan(), 0)), bits(want.masked_fill(want.isnan(), 0))), f"{got}\n{want}"


def rows_of(arguments: dict[str, Any], rows: list[int]) -> dict[str, Any]:
    """The images ``rows`` of a batch, as a batch of their own."""
    return replace(arguments, lambda x: x[rows].clone())
