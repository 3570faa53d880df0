"""What several kernels share: the ranking of scores, lengths, and reductions whose order depends on nothing but the shape."""

from __future__ import annotations

import triton
import triton.language as tl

# Keys of scores are int32. A token beyond the length ranks after every score, NaN after -inf.
INVALID_KEY = tl.constexpr(-2147483648)
NAN_KEY = tl.constexpr(-2147483647)
LAST_INDEX = tl.constexpr(0x7FFFFFFF)


@triton.jit
def finite(x):
    """Neither infinite nor NaN."""
    return tl.abs(x) < float("inf")


@triton.jit
def widen(x):
    """Exactly the same value in float32. The interpreter's own conversion takes subnormal bfloat16 for 0."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def order_key(x):
    """float32 -> int32 in the ranking of every op: finite scores falling, then -inf, then NaN; 0.0 and -0.0 are equal."""
    x = tl.where(x == 0.0, 0.0, x)
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(x == x, bits ^ ((bits >> 31) & 0x7FFFFFFF), NAN_KEY)


@triton.jit
def pack(key, index):
    """int64 whose greatest is the greatest key at the lowest index. No two are equal, so any order of comparison agrees."""
    return (key.to(tl.int64) << 32) | (index ^ LAST_INDEX).to(tl.int64)


@triton.jit
def packed_index(packed):
    """The index that :func:`pack` put in, int64."""
    return (packed & LAST_INDEX) ^ LAST_INDEX


@triton.jit
def packed_key(packed):
    """The key that :func:`pack` put in, int32."""
    return (packed >> 32).to(tl.int32)


@triton.jit
def row_length(lengths, stride, row, n):
    """``lengths[row]`` clamped to [0, n], or n where there are no lengths (None)."""
    if lengths is None:  # noqa: SIM108 - only one branch is compiled
        length = n
    else:
        length = tl.minimum(tl.maximum(tl.load(lengths + row * stride), 0), n).to(tl.int32)
    return length
