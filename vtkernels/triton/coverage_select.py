"""The greedy loop on a similarity of the caller's: greatest entry, fixed point, selection. Three launches.

Entries become 64-bit integers relative to the power of two below the greatest of the image, and sums are exact. With fewer than
32768 items an entry of at least 2**-22 of the greatest keeps all its bits, a smaller one those from 2**-45 of the greatest up.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import finite, row_length, widen
from vtkernels.triton._gram import padded
from vtkernels.triton._greedy import greedy_builds, select_greedily
from vtkernels.triton._launch import Build, default_parameters, options, parameters, refuse_float64


@triton.jit
def _positive_tile(similarity, b, i, j, valid, m, stride_b, stride_m, stride_n):
    """Entries in float32, 0 where negative, not finite, or behind the items or the valid candidates."""
    x = tl.load(
        similarity + b * stride_b + i[:, None].to(tl.int64) * stride_m + j[None, :].to(tl.int64) * stride_n,
        mask=(i < m)[:, None] & (j < valid)[None, :],
        other=0.0,
    )
    x = widen(x)
    return tl.where(finite(x), tl.maximum(x, 0.0), 0.0)


@triton.jit(do_not_specialize=("m", "tiles_m", "tiles_n", "lengths_stride"))
def _greatest_kernel(
    similarity,
    lengths,
    greatest,  # [B, tiles] float32
    m,
    n,
    tiles_m,
    tiles_n,
    stride_b,
    stride_m,
    stride_n,
    lengths_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    b = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    i = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = row_length(lengths, lengths_stride, b, n)
    x = _positive_tile(similarity, b, i, j, valid, m, stride_b, stride_m, stride_n)
    tl.store(greatest + tl.program_id(0), tl.max(tl.max(x, 1), 0))


@triton.jit(do_not_specialize=("m", "tiles_m", "tiles_n", "lengths_stride"))
def _fixed_point_kernel(
    similarity,
    lengths,
    greatest,
    fixed,  # [B, m, ld] int64
    parts,  # [B, tiles_m, ld] int64: column sums of each row of tiles
    scale,  # [B] float32
    m,
    n,
    ld,
    tiles_m,
    tiles_n,
    one,
    stride_b,
    stride_m,
    stride_n,
    lengths_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    tiles = tiles_m * tiles_n
    tile = tl.program_id(0) % tiles
    b = (tl.program_id(0) // tiles).to(tl.int64)
    i = tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    valid = row_length(lengths, lengths_stride, b, n)

    most = tl.zeros([BLOCK_T], tl.float32)
    for first in range(0, tiles, BLOCK_T):
        t = first + tl.arange(0, BLOCK_T)
        most = tl.maximum(most, tl.load(greatest + b * tiles + t, mask=t < tiles, other=0.0))
    # The power of two below the greatest entry, by its exponent bits; where it and its inverse are normal float32 numbers.
    exponent = tl.minimum(tl.maximum(tl.max(most, 0).to(tl.int32, bitcast=True) >> 23, 1), 253)
    power = (exponent << 23).to(tl.float32, bitcast=True)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    if tile == 0:
        tl.store(scale + b, power)

    x = _positive_tile(similarity, b, i, j, valid, m, stride_b, stride_m, stride_n)
    q = (x * inverse * one).to(tl.int64)
    row = tile // tiles_n
    tl.store(fixed + b * m * ld + i[:, None].to(tl.int64) * ld + j[None, :], q, mask=(i < m)[:, None] & (j < ld)[None, :])
    tl.store(parts + (b * tiles_m + row) * ld + j, tl.sum(q, 0), mask=j < ld)


def coverage_select(
    similarity: Tensor,
    weight: Tensor | None,
    k: int,
    *,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> tuple[Tensor, Tensor]:
    """Launcher of the op. Workspace: an int64 matrix of M x N an image."""
    refuse_float64("coverage_select", similarity=similarity)
    b, m, n = similarity.shape
    if b == 0 or k == 0:
        return similarity.new_empty((b, k), dtype=torch.int64), similarity.new_empty((b, k), dtype=torch.float32)
    use = parameters("coverage_select", similarity.device)
    tiles_m, tiles_n, ld = triton.cdiv(max(m, 1), use["BLOCK_M"]), triton.cdiv(n, use["BLOCK_N"]), padded(n)
    # An entry is below 2 ** (bits + 2), and the sum of m of them must fit 63 bits.
    bits = min(45, 60 - m.bit_length())
    greatest = similarity.new_empty((b, tiles_m * tiles_n), dtype=torch.float32)
    fixed = similarity.new_empty((b, m, ld), dtype=torch.int64)
    parts = similarity.new_empty((b, tiles_m, ld), dtype=torch.int64)
    scale = similarity.new_empty(b, dtype=torch.float32)
    grid = (b * tiles_m * tiles_n,)
    strides = (*similarity.stride(), lengths.stride(0) if lengths is not None else 0)
    _greatest_kernel[grid](similarity, lengths, greatest, m, n, tiles_m, tiles_n, *strides, **use)
    _fixed_point_kernel[grid](
        similarity, lengths, greatest, fixed, parts, scale, m, n, ld, tiles_m, tiles_n, 2.0**bits, *strides, BLOCK_T=1024, **use
    )
    gains = similarity.new_empty((b, k), dtype=torch.float32)
    indices = select_greedily(
        fixed, parts, weight, k, n=n, bits=bits, scale=scale, combine=combine, lengths=lengths, sort=sort, scores=gains
    )
    return indices, gains


def _tile_builds() -> list[Build]:
    use = default_parameters("coverage_select")
    sizes = ("m", "n", "tiles_m", "tiles_n", "stride_b", "stride_m", "lengths_stride")
    common = {"similarity": "*fp16", "greatest": "*fp32", **dict.fromkeys(sizes, "i32")}
    fixed = {"fixed": "*i64", "parts": "*i64", "scale": "*fp32", "ld": "i32", "one": "fp32"}
    launch = options(use)
    constants = {"lengths": None, "stride_n": 1, **use}
    divisible = ("n", "stride_b", "stride_m")
    return [
        Build("coverage_select greatest", _greatest_kernel, common, constants, divisible=divisible, **launch),
        Build(
            "coverage_select fixed point",
            _fixed_point_kernel,
            common | fixed,
            constants | {"BLOCK_T": 1024},
            divisible=(*divisible, "ld"),
            **launch,
        ),
    ]


COMPILE = [
    *_tile_builds(),
    *greedy_builds("coverage_select", similarity="*i64", results={"scores": "*fp32", "scale": "*fp32"}),
]
