"""Kept rows moved to the front, in place. One launch.

Rows depend on each other, channels do not: a program owns a run of channels of one image and walks the kept rows in order,
``BLOCK_K`` at a time. Indices ascend, so slot s reads row s or a later one, and all that earlier blocks wrote lies before it.
Inside a block every row is read before the first is written.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._launch import Build, default_parameters, options, parameters, refuse_float64


@triton.jit(do_not_specialize=("n", "k", "runs", "indices_b", "indices_k"))
def _compact_kernel(
    tokens, indices, n, k, channels, runs, tokens_b, tokens_n, tokens_d, indices_b, indices_k,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    b = (tl.program_id(0) // runs).to(tl.int64)
    channel = tl.program_id(0) % runs * BLOCK_D + tl.arange(0, BLOCK_D)
    tokens += b * tokens_b + channel[None, :].to(tl.int64) * tokens_d
    indices += b * indices_b
    inside = (channel < channels)[None, :]
    for first in range(0, k, BLOCK_K):
        slot = first + tl.arange(0, BLOCK_K)
        index = tl.load(indices + slot.to(tl.int64) * indices_k, mask=slot < k, other=-1)
        readable = ((index >= 0) & (index < n))[:, None]  # a wrong index must not read foreign memory
        row = tl.load(tokens + index[:, None] * tokens_n, mask=readable & inside, other=0.0)
        tl.debug_barrier()  # another thread may be about to write a row that this one reads
        tl.store(tokens + slot[:, None].to(tl.int64) * tokens_n, row, mask=(slot < k)[:, None] & inside)


def compact_(tokens: Tensor, indices: Tensor) -> None:
    """As ``reference.compact_``. One launch, K x D elements read and written an image."""
    refuse_float64("compact_", tokens=tokens)
    (b, n, channels), k = tokens.shape, indices.shape[1]
    if b == 0 or k == 0 or channels == 0:
        return
    use = parameters("compact_", tokens.device, channels=channels)
    runs = triton.cdiv(channels, use["BLOCK_D"])
    _compact_kernel[(b * runs,)](tokens, indices, n, k, channels, runs, *tokens.stride(), *indices.stride(), **use)


def _builds() -> list[Build]:
    sizes = ("n", "k", "channels", "runs", "tokens_b", "tokens_n", "indices_b", "indices_k")
    builds = []
    for channels, dtype in ((1024, "fp16"), (4096, "fp16"), (4096, "fp32")):
        use = default_parameters("compact_", channels=channels)
        builds.append(
            Build(
                f"compact_ D={channels} {dtype}",
                _compact_kernel,
                {"tokens": f"*{dtype}", "indices": "*i64", **dict.fromkeys(sizes, "i32")},
                {"tokens_d": 1, "BLOCK_K": use["BLOCK_K"], "BLOCK_D": use["BLOCK_D"]},
                **options(use),
                divisible=("channels", "tokens_b", "tokens_n"),
            )
        )
    return builds


COMPILE = _builds()
