"""Column and row means of the head-averaged attention, without the map. Three launches; of logits two.

Softmax: a program owns rows of one head and finds their greatest logit, their mass and how much of it falls on counted
columns; then a program owns columns of one head and adds up the normalised rows from the first to the last; then heads are
added in their order. No sum is shared between programs. Logits are computed twice rather than stored.

Logits are linear: their means are products with the sum of all queries, or of all keys.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import finite, row_length
from vtkernels.triton._gram import fold
from vtkernels.triton._launch import (
    Build,
    default_parameters,
    interpreted,
    next_power_of_2,
    options,
    parameters,
    refuse_float64,
)

_HEADS_BLOCK = 128  # tokens of a program that adds up heads


@triton.jit
def _load_rows(x, row, valid, first, d, stride_t, stride_d, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr):
    """Channels from ``first`` on of the rows ``row``, zero from ``valid`` on, as float32 with ``WIDEN``."""
    channel = first + tl.arange(0, BLOCK_D)
    at = row[:, None].to(tl.int64) * stride_t + channel[None, :].to(tl.int64) * stride_d
    x = tl.load(x + at, mask=(row < valid)[:, None] & (channel < d)[None, :], other=0.0)
    return x.to(tl.float32) if WIDEN else x


@triton.jit
def _logits(
    q, query, key, row, column, length, d, scale, query_t, query_d, key_t, key_d,
    BLOCK_D: tl.constexpr, CHUNKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Scaled products of rows and columns, -inf where not finite or behind the length. ``q``: the queries, if in one chunk."""
    if CHUNKS == 1:
        k = _load_rows(key, column, length, 0, d, key_t, key_d, BLOCK_D, WIDEN)
        product = tl.dot(q, tl.trans(k), input_precision="ieee")
    else:
        product = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
        for first in range(0, d, BLOCK_D):
            some = _load_rows(query, row, length, first, d, query_t, query_d, BLOCK_D, WIDEN)
            k = _load_rows(key, column, length, first, d, key_t, key_d, BLOCK_D, WIDEN)
            product = tl.dot(some, tl.trans(k), product, input_precision="ieee")
    logits = product * scale
    return tl.where(finite(logits) & (column < length)[None, :], logits, float("-inf"))


@triton.jit(do_not_specialize=("heads", "t", "prefix", "tiles", "lengths_b"))
def _rows_kernel(
    query, key, lengths,
    statistics,  # [4, B, H, rows] float32: greatest logit and 1 / mass of a row, sums over counted rows and columns
    heads, t, d, prefix, scale, tiles,
    query_b, query_h, query_t, query_d, key_b, key_h, key_t, key_d, lengths_b,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    length = row_length(lengths, lengths_b, b, t)
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    row = prefix + tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    if prefix + tile * BLOCK_Q < length:
        q = _load_rows(query, row, length, 0, d, query_t, query_d, BLOCK_D, WIDEN)
        greatest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
        mass = tl.zeros([BLOCK_Q], tl.float32)
        counted = tl.zeros([BLOCK_Q], tl.float32)
        for first in range(0, length, BLOCK_K):
            column = first + tl.arange(0, BLOCK_K)
            logits = _logits(
                q, query, key, row, column, length, d, scale, query_t, query_d, key_t, key_d, BLOCK_D, CHUNKS, WIDEN
            )
            before = greatest
            greatest = tl.maximum(greatest, tl.max(logits, 1))
            base = tl.where(greatest == float("-inf"), 0.0, greatest)  # no column with mass so far
            fade = tl.exp(before - base)
            weight = tl.exp(logits - base[:, None])
            mass = mass * fade + tl.sum(weight, 1)
            counted = counted * fade + tl.sum(tl.where((column >= prefix)[None, :], weight, 0.0), 1)
        inverse = tl.where(mass > 0, tl.div_rn(tl.full([BLOCK_Q], 1.0, tl.float32), tl.where(mass > 0, mass, 1.0)), 0.0)
        rows = t - prefix
        plane = tl.num_programs(0).to(tl.int64) // tiles * rows
        at = statistics + head * rows + row - prefix
        tl.store(at, tl.where(mass > 0, greatest, 0.0), mask=row < length)
        tl.store(at + plane, inverse, mask=row < length)
        tl.store(at + 3 * plane, counted * inverse, mask=row < length)


@triton.jit(do_not_specialize=("heads", "t", "prefix", "tiles", "lengths_b"))
def _columns_kernel(
    query, key, lengths,
    statistics,
    heads, t, d, prefix, scale, tiles,
    query_b, query_h, query_t, query_d, key_b, key_h, key_t, key_d, lengths_b,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, CHUNKS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    head = (tl.program_id(0) // tiles).to(tl.int64)
    b, h = head // heads, head % heads
    length = row_length(lengths, lengths_b, b, t)
    query += b * query_b + h * query_h
    key += b * key_b + h * key_h
    rows = t - prefix
    plane = tl.num_programs(0).to(tl.int64) // tiles * rows
    column = prefix + tile * BLOCK_K + tl.arange(0, BLOCK_K)
    if prefix + tile * BLOCK_K < length:
        total = tl.zeros([BLOCK_K], tl.float32)
        for first in range(prefix, length, BLOCK_Q):
            row = first + tl.arange(0, BLOCK_Q)
            q = _load_rows(query, row, length, 0, d, query_t, query_d, BLOCK_D, WIDEN)
            logits = _logits(
                q, query, key, row, column, length, d, scale, query_t, query_d, key_t, key_d, BLOCK_D, CHUNKS, WIDEN
            )
            at = statistics + head * rows + row - prefix
            greatest = tl.load(at, mask=row < length, other=0.0)
            inverse = tl.load(at + plane, mask=row < length, other=0.0)
            total += tl.sum(tl.exp(logits - greatest[:, None]) * inverse[:, None], 0)
        tl.store(statistics + 2 * plane + head * rows + column - prefix, total, mask=column < length)


@triton.jit
def _store_means(received, given, image, images, row, total, length, t, prefix, heads):
    """Sums of one image over heads and counted tokens -> means, 0 behind the length. The second half of images is ``given``."""
    share = heads * tl.maximum(length - prefix, 1)
    mean = tl.div_rn(total, tl.zeros(total.shape, tl.float32) + share.to(tl.float32))
    mean = tl.where(row < length, mean, 0.0)
    at = image % images * (t - prefix) + row - prefix
    if image < images:
        tl.store(received + at, mean, mask=row < t)
    else:
        tl.store(given + at, mean, mask=row < t)


@triton.jit(do_not_specialize=("heads", "t", "prefix", "tiles", "lengths_b"))
def _heads_kernel(
    sums,  # [2, B, H, rows] float32
    lengths, received, given,
    heads, t, prefix, tiles, lengths_b,
    BLOCK_T: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    image = (tl.program_id(0) // tiles).to(tl.int64)
    images = tl.num_programs(0) // tiles // 2
    length = row_length(lengths, lengths_b, image % images, t)
    row = prefix + tile * BLOCK_T + tl.arange(0, BLOCK_T)
    total = tl.zeros([BLOCK_T], tl.float32)
    for h in range(0, heads):
        total += tl.load(sums + (image * heads + h) * (t - prefix) + row - prefix, mask=row < length, other=0.0)
    _store_means(received, given, image, images, row, total, length, t, prefix, heads)


@triton.jit
def _total(
    x, b, h, first, length, d, prefix, x_b, x_h, x_t, x_d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Sum [BLOCK_D] of the counted rows whose squared norm is finite, channels from ``first`` on."""
    x += b * x_b + h * x_h
    total = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for start in range(prefix, length, BLOCK_T):
        row = start + tl.arange(0, BLOCK_T)
        good = _has_finite_norm(x, row, length, d, x_t, x_d, BLOCK_T, BLOCK_D)
        some = _load_rows(x, row, length, first, d, x_t, x_d, BLOCK_D, True)
        total += tl.where(good[:, None], some, 0.0)
    return fold(tl.trans(total), BLOCK_D, BLOCK_T)


@triton.jit
def _has_finite_norm(x, row, length, d, x_t, x_d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr):
    square = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    for first in range(0, d, BLOCK_D):
        some = _load_rows(x, row, length, first, d, x_t, x_d, BLOCK_D, True)
        square = tl.fma(some, some, square)
    return finite(fold(square, BLOCK_T, BLOCK_D))


@triton.jit(do_not_specialize=("heads", "t", "prefix", "chunks", "lengths_b"))
def _totals_kernel(
    query, key, lengths,
    totals,  # [2, B, H, d] float32: of the queries, of the keys
    heads, t, d, prefix, chunks,
    query_b, query_h, query_t, query_d, key_b, key_h, key_t, key_d, lengths_b,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) % chunks * BLOCK_D
    head = (tl.program_id(0) // chunks).to(tl.int64)
    images = tl.num_programs(0) // chunks // heads // 2
    b, h = head // heads % images, head % heads
    length = row_length(lengths, lengths_b, b, t)
    if head < images * heads:
        total = _total(query, b, h, first, length, d, prefix, query_b, query_h, query_t, query_d, BLOCK_T, BLOCK_D)
    else:
        total = _total(key, b, h, first, length, d, prefix, key_b, key_h, key_t, key_d, BLOCK_T, BLOCK_D)
    channel = first + tl.arange(0, BLOCK_D)
    tl.store(totals + head * d + channel, total, mask=channel < d)


@triton.jit
def _products(
    x, totals, b, heads, row, length, d, scale, x_b, x_h, x_t, x_d, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """Sum over heads of the scaled products of rows with the head's total; NaN for a row whose squared norm is not finite."""
    x += b * x_b
    result = tl.zeros([BLOCK_T], tl.float32)
    for _ in range(0, heads):
        product = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        square = tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
        for first in range(0, d, BLOCK_D):
            channel = first + tl.arange(0, BLOCK_D)
            total = tl.load(totals + channel, mask=channel < d, other=0.0)
            some = _load_rows(x, row, length, first, d, x_t, x_d, BLOCK_D, True)
            product = tl.fma(some, tl.broadcast_to(total[None, :], [BLOCK_T, BLOCK_D]), product)
            square = tl.fma(some, some, square)
        good = finite(fold(square, BLOCK_T, BLOCK_D))
        result += tl.where(good, fold(product, BLOCK_T, BLOCK_D) * scale, float("nan"))
        totals += d
        x += x_h
    return result


@triton.jit(do_not_specialize=("heads", "t", "prefix", "tiles", "lengths_b"))
def _logit_means_kernel(
    query, key, lengths,
    totals, received, given,
    heads, t, d, prefix, scale, tiles,
    query_b, query_h, query_t, query_d, key_b, key_h, key_t, key_d, lengths_b,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    image = (tl.program_id(0) // tiles).to(tl.int64)
    images = tl.num_programs(0) // tiles // 2
    b = image % images
    length = row_length(lengths, lengths_b, b, t)
    row = prefix + tile * BLOCK_T + tl.arange(0, BLOCK_T)
    totals += image * heads * d
    if image < images:
        total = _products(key, totals, b, heads, row, length, d, scale, key_b, key_h, key_t, key_d, BLOCK_T, BLOCK_D)
    else:
        total = _products(query, totals, b, heads, row, length, d, scale, query_b, query_h, query_t, query_d, BLOCK_T, BLOCK_D)
    _store_means(received, given, image, images, row, total, length, t, prefix, heads)


def attention_profile(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    softmax: bool = True,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As ``reference.attention_profile``. O(H T^2 d) for the softmax, O(H T d) for logits. Workspace: 4 H T numbers."""
    refuse_float64("attention_profile", query=query, key=key)
    b, heads, t, d = key.shape
    rows = t - prefix
    received, given = (key.new_empty((b, rows), dtype=torch.float32) for _ in range(2))
    if b == 0 or rows == 0:
        return received, given
    scale = d**-0.5 if scale is None else float(scale)
    lengths_b = 0 if lengths is None else lengths.stride(0)
    strides = (*query.stride(), *key.stride(), lengths_b)
    use = _blocks("attention_profile" if softmax else "attention_profile_logits", key.device, d, key.element_size())
    if not softmax:
        totals = key.new_empty((2, b, heads, d), dtype=torch.float32)
        chunks, tiles = triton.cdiv(d, use["BLOCK_D"]), triton.cdiv(rows, use["BLOCK_T"])
        _totals_kernel[(2 * b * heads * chunks,)](query, key, lengths, totals, heads, t, d, prefix, chunks, *strides, **use)
        _logit_means_kernel[(2 * b * tiles,)](
            query, key, lengths, totals, received, given, heads, t, d, prefix, scale, tiles, *strides, **use
        )
        return received, given
    statistics = key.new_empty((4, b, heads, rows), dtype=torch.float32)
    use |= {"CHUNKS": triton.cdiv(d, use["BLOCK_D"]), "WIDEN": interpreted() and key.dtype == torch.bfloat16}  # see _gram
    for kernel, block in ((_rows_kernel, use["BLOCK_Q"]), (_columns_kernel, use["BLOCK_K"])):
        tiles = triton.cdiv(rows, block)
        kernel[(b * heads * tiles,)](query, key, lengths, statistics, heads, t, d, prefix, scale, tiles, *strides, **use)
    tiles = triton.cdiv(rows, _HEADS_BLOCK)
    _heads_kernel[(2 * b * tiles,)](
        statistics[2:], lengths, received, given, heads, t, prefix, tiles, lengths_b, BLOCK_T=_HEADS_BLOCK, num_warps=4
    )
    return received, given


def _blocks(kernel: str, device: torch.device, d: int, size: int) -> dict[str, Any]:
    """Launch parameters, with no more channels at a time than there are; 16 is the least a product takes."""
    return _no_wider(parameters(kernel, device, d=d, bytes=size), d)


def _no_wider(use: dict[str, Any], d: int) -> dict[str, Any]:
    return use | {"BLOCK_D": min(use["BLOCK_D"], max(16, next_power_of_2(d)))}


def _builds() -> list[Build]:
    numbers = dict.fromkeys(("heads", "t", "d", "prefix", "tiles"), "i32")
    strides = [f"{x}_{size}" for x in ("query", "key") for size in "bht"]
    constants = {"lengths": None, "query_d": 1, "key_d": 1}
    common = numbers | dict.fromkeys((*strides, "lengths_b"), "i32")
    builds = []
    for d, dtype in ((64, "fp16"), (72, "bf16"), (128, "fp16"), (64, "fp32"), (128, "fp32")):
        inputs = {"query": f"*{dtype}", "key": f"*{dtype}"}
        size = int(dtype[2:]) // 8
        use = _no_wider(default_parameters("attention_profile", d=d, bytes=size), d)
        launch = options(use) | {"divisible": (*strides, "d")[: 6 + (d % 16 == 0)]}
        use |= {"CHUNKS": triton.cdiv(d, use["BLOCK_D"]), "WIDEN": False}
        softmax = {**inputs, **common, "statistics": "*fp32", "scale": "fp32"}
        for what, kernel in (("rows", _rows_kernel), ("columns", _columns_kernel)):
            builds.append(Build(f"attention_profile {what} d={d} {dtype}", kernel, softmax, constants | use, **launch))
    for d, dtype in ((64, "fp16"), (128, "fp32")):
        inputs = {"query": f"*{dtype}", "key": f"*{dtype}"}
        use = _no_wider(default_parameters("attention_profile_logits", d=d, bytes=int(dtype[2:]) // 8), d)
        launch = options(use) | {"divisible": (*strides, "d")}
        totals = {**inputs, **common, "totals": "*fp32", "chunks": "i32"}
        del totals["tiles"]
        means = {**inputs, **common, "totals": "*fp32", "received": "*fp32", "given": "*fp32", "scale": "fp32"}
        for what, kernel, signature in (("totals", _totals_kernel, totals), ("logit means", _logit_means_kernel, means)):
            only = {"BLOCK_T": use["BLOCK_T"], "BLOCK_D": use["BLOCK_D"]}
            builds.append(Build(f"attention_profile {what} d={d} {dtype}", kernel, signature, constants | only, **launch))
    heads = {"sums": "*fp32", "received": "*fp32", "given": "*fp32", **numbers, "lengths_b": "i32"}
    del heads["d"]
    builds.append(
        Build(
            "attention_profile heads",
            _heads_kernel,
            heads,
            {"lengths": None, "BLOCK_T": _HEADS_BLOCK},
            num_warps=4,
            num_stages=1,
        )
    )
    return builds


COMPILE = _builds()
