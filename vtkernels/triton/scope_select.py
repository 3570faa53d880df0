"""SCOPE: the cosine of all pairs in tiles, then the greedy loop. Two launches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import row_length
from vtkernels.triton._gram import cosine, direction, mirror_diagonal, padded, products, tile_builds, triangle
from vtkernels.triton._greedy import greedy_builds, select_greedily
from vtkernels.triton._launch import interpreted, parameters, refuse_float64

# A cosine is kept as a multiple of 2**-26: its rounding is an eighth of the last bit of a float32 just below 1, and less than
# the error of the float32 product it comes from.
BITS = 26
_ONE = tl.constexpr(float(2**BITS))


@triton.jit(do_not_specialize=("n", "tiles", "lengths_stride"))
def _similarity_kernel(
    features,
    lengths,
    similarity,  # [B, n, ld] int32
    parts,  # [B, tiles, ld] int64: column sums of each row of tiles
    n,
    channels,
    ld,
    tiles,
    stride_b,
    stride_n,
    stride_d,
    lengths_stride,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    each = tiles * (tiles + 1) // 2
    b = (tl.program_id(0) // each).to(tl.int64)
    row, column = triangle(tl.program_id(0) % each)
    valid = row_length(lengths, lengths_stride, b, n)
    lanes = tl.arange(0, BLOCK)
    i, j = row * BLOCK + lanes, column * BLOCK + lanes
    product, square_i, square_j = products(
        features + b * stride_b, i, j, valid, channels, stride_n, stride_d, True, BLOCK, BLOCK_D, WIDEN
    )
    power_i, fraction_i = direction(square_i)
    power_j, fraction_j = direction(square_j)
    c = cosine(product, power_i, fraction_i, power_j, fraction_j)
    scaled = tl.maximum(c, 0.0) * _ONE
    whole = tl.floor(scaled)
    fixed = whole.to(tl.int32) + (scaled - whole >= 0.5).to(tl.int32)
    if row == column:
        fixed = mirror_diagonal(fixed, BLOCK)

    similarity += b * n * ld
    tl.store(similarity + i[:, None].to(tl.int64) * ld + j[None, :], fixed, mask=(i < n)[:, None] & (j < ld)[None, :])
    tl.store(similarity + j[:, None].to(tl.int64) * ld + i[None, :], tl.trans(fixed), mask=(j < n)[:, None] & (i < ld)[None, :])
    parts += b * tiles * ld
    tl.store(parts + row.to(tl.int64) * ld + j, tl.sum(fixed.to(tl.int64), 0), mask=j < ld)
    tl.store(parts + column.to(tl.int64) * ld + i, tl.sum(fixed.to(tl.int64), 1), mask=i < ld)


def scope_select(
    features: Tensor,
    saliency: Tensor | None,
    k: int,
    *,
    alpha: float = 1.0,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> Tensor:
    """Launcher of the op. Workspace: an int32 matrix of N x N an image."""
    refuse_float64("scope_select", features=features)
    b, n, channels = features.shape
    if b == 0 or k == 0:
        return features.new_empty((b, k), dtype=torch.int64)
    use = parameters("scope_select_similarity", features.device, n=n, bytes=features.element_size())
    ld, tiles = padded(n), triton.cdiv(n, use["BLOCK"])
    similarity = features.new_empty((b, n, ld), dtype=torch.int32)
    parts = features.new_empty((b, tiles, ld), dtype=torch.int64)
    _similarity_kernel[(b * tiles * (tiles + 1) // 2,)](
        features,
        lengths,
        similarity,
        parts,
        n,
        channels,
        ld,
        tiles,
        *features.stride(),
        lengths.stride(0) if lengths is not None else 0,
        WIDEN=interpreted() and features.dtype == torch.bfloat16,
        **use,
    )
    return select_greedily(
        similarity,
        parts,
        saliency,
        k,
        n=n,
        bits=BITS,
        symmetric=True,
        alpha=alpha,
        combine=combine,
        lengths=lengths,
        sort=sort,
    )


COMPILE = [
    *tile_builds("scope_select", _similarity_kernel, "scope_select_similarity", {"similarity": "*i32", "parts": "*i64"}),
    *greedy_builds("scope_select", similarity="*i32", results={"scores": None, "scale": None}),
]
