"""HoloV: the variance of every token's similarities to its run, tile by tile, then one program an image. Two launches; without
features the second alone.

The second program has a row of its tiles for every run: sums of attention, weights, quotas, and in each run the place of a
token by counting those that rank before it, which needs no sort. Sums, shares and the weights before their one rounding to
float32 are float64, so that a weight times a whole number is exact.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import INVALID_KEY, finite, row_length
from vtkernels.triton._gram import fold, products
from vtkernels.triton._launch import (
    Build,
    default_parameters,
    interpreted,
    next_power_of_2,
    options,
    parameters,
    refuse_float64,
)
from vtkernels.triton.topk_select import kth_key

_VARIANTS = {"released": 0, "full": 1, "paper": 2}
_RELEASED, _PAPER = tl.constexpr(_VARIANTS["released"]), tl.constexpr(_VARIANTS["paper"])

_EPS = tl.constexpr(1e-6)  # of the published code: in the row norms, under the variance, in the sum of the scores
_NOT_FINITE, _OUTSIDE = tl.constexpr(-1.0), tl.constexpr(-2.0)  # behind all keys of finite attention


@triton.jit
def _run(c, length, runs):
    """First token and size of run ``c``: the first (length mod runs) are longer by one."""
    short, longer = length // runs, length % runs
    return c * short + tl.minimum(c, longer), short + (c < longer).to(tl.int32)


@triton.jit
def _inverse_norm(square):
    """1 / (norm + eps), 0 for a row that is zero or not finite."""
    good = (square > 0) & finite(square)
    one = tl.full(square.shape, 1.0, tl.float32)
    return tl.where(good, tl.div_rn(one, tl.sqrt_rn(tl.where(good, square, 1.0)) + _EPS), 0.0)


@triton.jit(do_not_specialize=("n", "runs", "tiles", "lengths_b"))
def _variance_kernel(
    features, lengths,
    variance,  # [B, n] float32
    n, channels, runs, tiles, stride_b, stride_n, stride_d, lengths_b,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0) % tiles
    c = tl.program_id(0) // tiles % runs
    b = (tl.program_id(0) // tiles // runs).to(tl.int64)
    start, size = _run(c, row_length(lengths, lengths_b, b, n), runs)
    lanes = tl.arange(0, BLOCK)
    i = start + tile * BLOCK + lanes
    if tile * BLOCK < size:
        total = tl.zeros([BLOCK], tl.float32)
        squares = tl.zeros([BLOCK], tl.float32)
        for first in range(0, size, BLOCK):
            j = start + first + lanes
            product, square_i, square_j = products(
                features + b * stride_b, i, j, start + size, channels, stride_n, stride_d, True, BLOCK, BLOCK_D, WIDEN
            )
            scale = _inverse_norm(square_i)[:, None] * _inverse_norm(square_j)[None, :]
            similarity = tl.where((scale > 0) & (i[:, None] != j[None, :]), product * scale, 0.0)
            total += tl.sum(similarity, 1)
            squares += tl.sum(similarity * similarity, 1)
        # the token's own zero counts among the squares, not among the others
        others = tl.zeros([BLOCK], tl.float32) + tl.maximum(size - 1, 1).to(tl.float32)
        average = tl.div_rn(total, others)
        spread = tl.div_rn(tl.fma(-(others - 1) * average, average, squares), others)
        tl.store(variance + b * n + i, tl.maximum(spread, 0.0), mask=i < start + size)


@triton.jit
def _mass(attention, stride, token, inside):
    """Attention, 0 where negative or outside; and where it is finite."""
    a = tl.load(attention + token.to(tl.int64) * stride, mask=inside, other=0.0)
    return tl.where(finite(a) & (a > 0), a, 0.0), finite(a)


@triton.jit
def _sum(x, BLOCK: tl.constexpr):
    """Sum of a block of floats in an order that no memory layout changes."""
    return tl.sum(fold(tl.reshape(x, [1, BLOCK]), 1, BLOCK), 0)


@triton.jit
def _greatest(weight, among, want):
    """int32 [C], 1 for the ``want`` runs of greatest weight, the first among equals."""
    key = tl.where(among, weight.to(tl.int32, bitcast=True), INVALID_KEY)  # weights are not negative
    t = kth_key(key, want)
    above, equal = (key > t).to(tl.int32), ((key == t) & among).to(tl.int32)
    return above | (equal & (tl.cumsum(equal, 0) <= want - tl.sum(above, 0)).to(tl.int32))


@triton.jit
def _redistribute(quota, weight, size, k, BLOCK: tl.constexpr):
    """Quota beyond the size of a run goes to runs with room in proportion to weight times room, until k tokens are given."""
    quota = tl.minimum(quota, size)
    left = k - tl.sum(quota, 0)
    rooms = tl.sum(size - quota, 0)
    while (left > 0) & (rooms > 0):
        room = size - quota
        pull = weight.to(tl.float64) * room.to(tl.float64)
        total = _sum(pull, BLOCK)
        weighted = total > 0
        pull = tl.where(weighted, pull, room.to(tl.float64))
        total = tl.where(weighted, total, rooms.to(tl.float64))
        share = tl.minimum((left.to(tl.float64) * pull / total).to(tl.int32), room)
        if tl.sum(share, 0) == 0:  # less than a token for everybody: one each, by weight
            share = _greatest(weight, room > 0, left)
        quota += share
        left = k - tl.sum(quota, 0)
        rooms = tl.sum(size - quota, 0)
    return quota


# A run starts anywhere, so no load gains by what is known of strides or alignment: one kernel for them all.
@triton.jit(
    do_not_specialize=("n", "k", "runs", "attention_b", "attention_n", "lengths_b"),
    do_not_specialize_on_alignment=("attention", "lengths"),
)
def _choose_kernel(
    attention,  # float32
    variance, lengths,
    keys,  # [B, n] what tokens are ranked by in their runs: float32, float64 for ``paper``
    indices,  # [B, k] int64
    n, k, runs, beta, attention_b, attention_n, lengths_b,
    VARIANT: tl.constexpr, SORT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_M: tl.constexpr, RIVALS: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    length = row_length(lengths, lengths_b, b, n)
    attention += b * attention_b
    keys += b * n
    indices += b * k
    if variance is not None:
        variance += b * n
    c = tl.arange(0, BLOCK_C)
    start, size = _run(c, length, runs)
    size = tl.where(c < runs, size, 0)
    width = tl.cdiv(length, runs)

    mean = tl.zeros([BLOCK_C], tl.float64)
    spread = tl.zeros([BLOCK_C], tl.float64)
    for first in range(0, width, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        inside = place[None, :] < size[:, None]
        token = start[:, None] + place[None, :]
        mean += fold(_mass(attention, attention_n, token, inside)[0].to(tl.float64), BLOCK_C, BLOCK_M)
        if variance is not None:
            spread += fold(tl.load(variance + token, mask=inside, other=0.0).to(tl.float64), BLOCK_C, BLOCK_M)
    tokens = tl.maximum(size, 1).to(tl.float64)
    mean /= tokens
    spread /= tokens
    gamma = mean / (spread + _EPS)
    if VARIANT == _PAPER:
        # mean(gamma V + A) is twice mean(A): the share of a run is its share of the attention
        score = mean
        total = _sum(score, BLOCK_C)
    else:
        ratio = tl.full([BLOCK_C], 1.0, tl.float64)
        if variance is not None:
            ratio = spread / (spread + _EPS)
        score = tl.where(size > 1, 1000.0 * mean * (1.0 + beta * ratio), mean)
        total = _sum(score, BLOCK_C) + _EPS
    weight = (score / tl.where(total > 0, total, 1.0)).to(tl.float32)

    quota = (weight.to(tl.float64) * k).to(tl.int32)
    quota += _greatest(weight, size > 0, k - tl.sum(quota, 0))
    if VARIANT != _RELEASED:
        quota = _redistribute(quota, weight, size, k, BLOCK_C)

    for first in range(0, width, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        inside = place[None, :] < size[:, None]
        token = start[:, None] + place[None, :]
        key, known = _mass(attention, attention_n, token, inside)
        if VARIANT == _PAPER:
            key = key.to(tl.float64) + gamma[:, None] * tl.load(variance + token, mask=inside, other=0.0).to(tl.float64)
        tl.store(keys + token, tl.where(known, key, _NOT_FINITE), mask=inside)
    tl.debug_barrier()  # every thread reads the keys of others

    count = tl.minimum(quota, size)
    base = tl.cumsum(count, 0) - count
    before = tl.zeros([BLOCK_C], tl.int32)
    for first in range(0, width, BLOCK_M):
        place = first + tl.arange(0, BLOCK_M)
        inside = place[None, :] < size[:, None]
        token = start[:, None] + place[None, :]
        key = tl.load(keys + token, mask=inside, other=0.0)
        rank = tl.zeros([BLOCK_C, BLOCK_M], tl.int32)
        for other in range(0, width, RIVALS):
            for step in tl.static_range(RIVALS):  # loads that do not wait for each other
                rival = other + step
                against = tl.load(keys + start + rival, mask=rival < size, other=_OUTSIDE)[:, None]
                rank += ((against > key) | ((against == key) & (rival < place)[None, :])).to(tl.int32)
        rank = tl.where((quota >= size)[:, None], place[None, :], rank)  # a whole run is published in natural order
        slot = base[:, None] + rank
        taken = inside & (rank < count[:, None]) & (slot < k)
        if SORT:
            chosen = taken.to(tl.int32)
            slot = (base + before)[:, None] + tl.cumsum(chosen, 1) - chosen
            before += tl.sum(chosen, 1)
        tl.store(indices + slot, token.to(tl.int64), mask=taken)
    for first in range(tl.sum(count, 0), k, BLOCK_C):
        slot = first + c
        tl.store(indices + slot, tl.full([BLOCK_C], -1, tl.int64), mask=slot < k)


def crop_topk(
    attention: Tensor,
    features: Tensor | None,
    k: int,
    *,
    crops: int = 16,
    beta: float = 0.09,
    variant: str = "released",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> Tensor:
    """As ``reference.crop_topk``. O(N^2 D / crops) for the variance, O(N^2 / crops) for the places. Workspace: 2 N numbers."""
    refuse_float64("crop_topk", attention=attention, features=features)
    b, n = attention.shape
    indices = attention.new_empty((b, k), dtype=torch.int64)
    if b == 0 or k == 0:
        return indices
    runs, lengths_b = min(crops, n), 0 if lengths is None else lengths.stride(0)
    variance = None
    if features is not None:
        variance = features.new_empty((b, n), dtype=torch.float32)
        use = parameters("crop_topk_variance", features.device, bytes=features.element_size())
        tiles = triton.cdiv(triton.cdiv(n, runs), use["BLOCK"])
        widen = interpreted() and features.dtype == torch.bfloat16
        _variance_kernel[(b * runs * tiles,)](
            features, lengths, variance, n, features.shape[2], runs, tiles, *features.stride(), lengths_b, WIDEN=widen, **use
        )
    use = _tiles(parameters("crop_topk", attention.device, runs=runs), runs)
    attention = attention.float()  # as it nearly always is; not worth a kernel for each other type
    keys = attention.new_empty((b, n), dtype=torch.float64 if variant == "paper" else torch.float32)
    arguments = (attention, variance, lengths, keys, indices, n, k, runs, float(beta), *attention.stride(), lengths_b)
    _choose_kernel[(b,)](*arguments, VARIANT=_VARIANTS[variant], SORT=sort, **use)
    return indices


def _tiles(use: dict[str, Any], runs: int) -> dict[str, Any]:
    """Blocks of the second kernel: a row for every run, of as many tokens as make up ``TILE`` together.

    Rows go by powers of four, for the number of runs varies with k, and each number of rows is compiled by itself.
    """
    rows = next(rows for rows in (1, 4, 16, 64, 256, 1024, next_power_of_2(runs)) if rows >= runs)
    return use | {"BLOCK_C": rows, "BLOCK_M": max(1, use.pop("TILE") // rows)}


def _builds() -> list[Build]:
    builds = []
    for dtype in ("fp16", "fp32"):
        use = default_parameters("crop_topk_variance", bytes=int(dtype[2:]) // 8)
        builds.append(
            Build(
                f"crop_topk variance {dtype}",
                _variance_kernel,
                {
                    "features": f"*{dtype}",
                    "variance": "*fp32",
                    **dict.fromkeys(("n", "channels", "runs", "tiles", "stride_b", "stride_n", "lengths_b"), "i32"),
                },
                {"lengths": None, "stride_d": 1, "BLOCK": use["BLOCK"], "BLOCK_D": use["BLOCK_D"], "WIDEN": False},
                **options(use),
                divisible=("channels", "stride_b", "stride_n"),
            )
        )
    for runs, variant, spread, sort in (
        (16, "released", True, False),
        (16, "full", False, True),
        (16, "full", True, True),
        (16, "paper", True, True),
        (16, "paper", True, False),
        (1, "full", True, True),
        (4, "full", True, True),
        (64, "full", True, True),
        (256, "full", True, True),
        (1024, "full", True, True),
    ):
        use = _tiles(default_parameters("crop_topk", runs=runs), runs)
        launch = options(use)
        builds.append(
            Build(
                f"crop_topk choice crops={runs} {variant}"
                + " without features" * (not spread)
                + " in order of choice" * (not sort),
                _choose_kernel,
                {
                    "attention": "*fp32",
                    **({"variance": "*fp32"} if spread else {}),
                    "keys": "*fp64" if variant == "paper" else "*fp32",
                    "indices": "*i64",
                    **dict.fromkeys(("n", "k", "runs", "attention_b", "attention_n", "lengths_b"), "i32"),
                    "beta": "fp32",
                },
                {
                    "lengths": None,
                    **({} if spread else {"variance": None}),
                    "VARIANT": _VARIANTS[variant],
                    "SORT": sort,
                    **use,
                },
                **launch,
            )
        )
    return builds


COMPILE = _builds()
