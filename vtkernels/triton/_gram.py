"""Tiles of the products of all pairs of rows, and the cosine they give.

The matrix is symmetric, so only tiles on and below the diagonal are computed; a kernel writes each of them twice. Every number
depends on its two rows and on ``BLOCK_D`` alone, not on their place in the matrix or the batch nor on the strides:

- a product is summed in blocks of ``BLOCK_D`` channels, whose sums are added in float32. Tensor cores truncate as they
  accumulate; over thousands of channels that would cost a score its last digits;
- float32 input is multiplied in float32, never in tf32;
- the product is taken first and normalised after, so half precision goes to the tensor cores as it is. The scale 1/norm of a
  row is split into a power of two and a fraction: copies of a row have the same cosines, and so has its double.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import widen
from vtkernels.triton._launch import Build, default_parameters, options


@triton.jit
def triangle(tile):
    """Row and column of a tile, counted row by row in the lower triangle."""
    row = ((tl.sqrt(8.0 * tile.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > tile, row - 1, row)  # the root is rounded
    row = tl.where((row + 1) * (row + 2) // 2 <= tile, row + 1, row)
    return row, tile - row * (row + 1) // 2


@triton.jit
def products(
    features_ptr,
    rows,
    columns,
    valid,
    channels,
    stride_n,
    stride_d,
    SQUARES: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Products of the rows ``rows`` with the rows ``columns`` of one image, [BLOCK, BLOCK] float32.

    Rows from ``valid`` on are zero. With ``SQUARES`` also the squared norms of both, [BLOCK]. ``WIDEN``: Triton's interpreter
    multiplies bfloat16 as integers; there the tiles are widened first, which changes no product.
    """
    lanes = tl.arange(0, BLOCK_D)
    left_ptr = features_ptr + rows[:, None].to(tl.int64) * stride_n + lanes[None, :].to(tl.int64) * stride_d
    right_ptr = features_ptr + columns[:, None].to(tl.int64) * stride_n + lanes[None, :].to(tl.int64) * stride_d
    left_valid, right_valid = (rows < valid)[:, None], (columns < valid)[:, None]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    left_squares = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    right_squares = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for first in range(0, channels, BLOCK_D):
        inside = (first + lanes < channels)[None, :]
        left = tl.load(left_ptr, mask=left_valid & inside, other=0.0)
        right = tl.load(right_ptr, mask=right_valid & inside, other=0.0)
        if SQUARES:
            left_squares = tl.fma(widen(left), widen(left), left_squares)
            right_squares = tl.fma(widen(right), widen(right), right_squares)
        if WIDEN:
            left, right = widen(left), widen(right)
        # times one: the compiler would turn a plain sum into accumulation inside the tensor core
        block = tl.dot(left, tl.trans(right), input_precision="ieee")
        total = tl.fma(block, tl.full([BLOCK, BLOCK], 1.0, tl.float32), total)
        left_ptr += BLOCK_D * stride_d
        right_ptr += BLOCK_D * stride_d
    if SQUARES:
        return total, fold(left_squares, BLOCK, BLOCK_D), fold(right_squares, BLOCK, BLOCK_D)
    else:
        return total


@triton.jit
def fold(x, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sums of the rows of [ROWS, WIDTH], neighbours first: an order that no memory layout changes. WIDTH is a power of two."""
    for step in tl.static_range(0, 16):
        if WIDTH >> (step + 1):
            x = tl.sum(tl.reshape(x, [ROWS, WIDTH >> (step + 1), 2]), 2)
    return tl.reshape(x, [ROWS])


@triton.jit
def direction(square):
    """1/norm as (power of two, fraction in [1, 2)), from the squared norm; both 0 where that is 0 or not finite."""
    good = (square > 0) & (square < float("inf"))
    one = tl.full(square.shape, 1.0, tl.float32)
    bits = tl.div_rn(one, tl.sqrt_rn(tl.where(good, square, 1.0))).to(tl.int32, bitcast=True)
    power = (bits & 0x7F800000).to(tl.float32, bitcast=True)
    fraction = ((bits & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    return tl.where(good, power, 0.0), tl.where(good, fraction, 0.0)


@triton.jit
def cosine(product, power_i, fraction_i, power_j, fraction_j):
    """The cosine of rows i with rows j, 0 where one of them has no direction; the order of i and j changes no bit.

    A product of two rows scaled by the powers is exact and never leaves the range of float32, which 1/norm of both would.
    """
    scale = fraction_i[:, None] * fraction_j[None, :]
    return tl.where(scale > 0, product * power_i[:, None] * power_j[None, :] * scale, 0.0)


@triton.jit
def mirror_diagonal(tile, BLOCK: tl.constexpr):
    """The lower triangle of a tile on the diagonal in both places."""
    lanes = tl.arange(0, BLOCK)
    return tl.where(lanes[:, None] >= lanes[None, :], tile, tl.trans(tile))


def padded(n: int) -> int:
    """Row stride of a matrix of n columns in the workspace: rows start at the width of a vector load."""
    return -(-n // 16) * 16


def scattered(features: Tensor) -> int:
    """1 where rows cannot be read in vectors: every element then needs a pointer of its own, which limits the tile."""
    *outer, inner = features.stride()
    return int(inner != 1 or any(stride % 16 for stride in outer))


def tile_builds(op: str, kernel: triton.JITFunction, parameters: str, results: dict[str, str]) -> list[Build]:
    """Ahead-of-time builds of a kernel over tiles of :func:`products`, from contiguous features of both kinds of arithmetic."""
    sizes = ("n", "channels", "ld", "tiles", "stride_b", "stride_n")
    builds = []
    for tokens, dtype in ((576, "fp16"), (576, "fp32"), (2880, "fp16"), (2880, "fp32")):
        use = default_parameters(parameters, n=tokens, bytes=int(dtype[2:]) // 8, scattered=0)
        builds.append(
            Build(
                f"{op} tiles N={tokens} {dtype}",
                kernel,
                {"features": f"*{dtype}", **results, **dict.fromkeys((*sizes, "lengths_stride"), "i32")},
                {"lengths": None, "stride_d": 1, "BLOCK": use["BLOCK"], "BLOCK_D": use["BLOCK_D"], "WIDEN": False},
                **options(use),
                divisible=("channels", "ld", "stride_b", "stride_n"),
            )
        )
    return builds
