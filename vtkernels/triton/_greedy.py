"""The greedy loop of ``scope_select`` and ``coverage_select``: one program an image, all steps in one launch.

Similarities are fixed-point integers (negative ones, which never cover anything, are 0), so every gain is an exact sum, in
whatever order. Gains can then be kept up to date instead of being computed again: a choice that raises the coverage of item i
from ``before`` to ``after`` takes ``clamp(C_ij, before, after) - before`` off the gain of candidate j; nothing else changes.
A step reads the rows of the items it covered better, fewer and fewer as coverage grows, where evaluating all candidates reads
every row; and it searches the maximum once, where lazy evaluation searches it for each stale candidate. As the order of the
sums is free, the bits do not depend on the launch parameters either.

Coverage, gains and the list of items are read through the caches, so the numbers of items and candidates are not limited.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import INVALID_KEY, NAN_KEY, finite, pack, packed_index, packed_key, row_length, widen
from vtkernels.triton._launch import Build, default_parameters, next_power_of_2, options, parameters

_TAKEN = tl.constexpr(-2)  # in place of a gain, which is never negative
_INVALID = tl.constexpr(-1)
_NOTHING = tl.constexpr(-(2**63))  # less than any candidate
_MOST_ROWS = tl.constexpr(16)  # of a block of the list: the sum of so many differences of 26 bits fits an int32


@triton.jit
def _weight(value, alpha, POWER: tl.constexpr):
    """``max(0, value) ** alpha`` in float32; NaN where value or power is not finite."""
    value = widen(value)
    base = tl.maximum(value, 0.0)
    if POWER == "zero":  # 0 ** 0 is 1
        weight = tl.full(value.shape, 1.0, tl.float32)
    elif POWER == "one":
        weight = base
    else:  # in double precision: the float32 logarithm of a GPU is an approximation
        weight = tl.exp2(alpha * tl.log2(tl.where(base > 0, base, 1.0).to(tl.float64))).to(tl.float32)
        weight = tl.where(base > 0, weight, 0.0)
    return tl.where(finite(value) & finite(weight), weight, float("nan"))


@triton.jit(do_not_specialize=("n", "part_count", "k", "weight_stride_b", "weight_stride_n", "lengths_stride"))
def _greedy_kernel(
    similarity,  # [B, M, ld] fixed point, 0 behind the candidates
    parts,  # [B, PARTS, ld] int64 whose sum are the first gains
    scale,  # [B] float32: what a similarity of 1 / unit is worth; None: 1
    weight,  # [B, N] or None
    lengths,
    gains,  # [B, ld] int64
    weights,  # [2, B, ld] float32: the weights, and the scores that won
    coverage,  # [3, B, M] like similarity: now; before and after the step, of the items in the list
    listed,  # [B, M] int32: the items that the step covers better
    indices,  # [B, k]
    scores,  # [B, k] or None
    m,
    n,
    ld,
    part_count,
    k,
    unit,
    alpha,
    weight_stride_b,
    weight_stride_n,
    lengths_stride,
    candidate_stride,
    item_stride,
    WEIGH: tl.constexpr,
    POWER: tl.constexpr,
    SORT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
):
    wide: tl.constexpr = similarity.dtype.element_ty == tl.int64
    tl.static_assert(wide or ROWS <= _MOST_ROWS, "the greedy loop of scope_select takes ROWS of at most 16")
    b, images = tl.program_id(0).to(tl.int64), tl.num_programs(0).to(tl.int64)
    similarity += b * m * ld
    parts += b * part_count * ld
    won = weights + (images + b) * ld
    weights += b * ld
    gains += b * ld
    before_of = coverage + (images + b) * m
    after_of = coverage + (2 * images + b) * m
    coverage += b * m
    listed += b * m
    indices += b * k
    if scores is not None:
        scores += b * k
    valid = row_length(lengths, lengths_stride, b, n)
    found = tl.minimum(k, valid)
    worth = 1.0
    if scale is not None:
        worth = tl.load(scale + b)
    lanes_m, lanes_n, lanes_r = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, ROWS)

    for first in range(0, ld, BLOCK_N):
        j = first + lanes_n
        gain = tl.zeros([BLOCK_N], tl.int64)
        part = parts + j
        for _ in range(0, part_count):
            gain += tl.load(part, mask=j < ld, other=0)
            part += ld
        tl.store(gains + j, tl.where(j < valid, gain, _INVALID), mask=j < ld)
        if WEIGH != "none":
            value = tl.load(weight + b * weight_stride_b + j.to(tl.int64) * weight_stride_n, mask=j < valid, other=0)
            tl.store(weights + j, _weight(value, alpha, POWER), mask=j < ld)
    for first in range(0, m, BLOCK_M):
        i = first + lanes_m
        tl.store(coverage + i, tl.zeros([BLOCK_M], coverage.dtype.element_ty), mask=i < m)
    tl.debug_barrier()  # from here on one thread loads what another stored

    count = 0
    for step in range(0, found):
        # Bring the gains up to date with the list, and find the best.
        top = tl.full([BLOCK_N], _NOTHING, tl.int64)
        for first in range(0, ld, BLOCK_N):
            j = first + lanes_n
            gain = tl.load(gains + j, mask=j < ld, other=_INVALID)
            lost = tl.full([BLOCK_N], 0, tl.int64)
            for row in range(0, count, ROWS):
                inside = row + lanes_r < count
                i = tl.load(listed + row + lanes_r, mask=inside, other=0).to(tl.int64)
                before = tl.load(before_of + row + lanes_r, mask=inside, other=0)[:, None]
                after = tl.load(after_of + row + lanes_r, mask=inside, other=0)[:, None]
                tile = tl.load(similarity + i[:, None] * ld + j[None, :], mask=inside[:, None] & (j < ld)[None, :], other=0)
                lost += tl.sum(tl.minimum(tl.maximum(tile, before), after) - before, 0).to(tl.int64)
            alive = gain >= 0
            gain -= lost
            tl.store(gains + j, gain, mask=alive)
            score = gain.to(tl.float32) * unit * worth
            if WEIGH == "multiply":
                score *= tl.load(weights + j, mask=j < ld, other=0.0)
            elif WEIGH == "add":
                score += tl.load(weights + j, mask=j < ld, other=0.0)
            # No score is negative, so the order of the bits is the order of the scores.
            key = tl.where(score > 0, score.to(tl.int32, bitcast=True), 0)
            key = tl.where(alive, tl.where(score == score, key, NAN_KEY), INVALID_KEY)
            top = tl.maximum(top, pack(key, j))
        best = tl.max(top, 0)

        pick = packed_index(best)
        key = packed_key(best)
        score = tl.where(key == NAN_KEY, float("nan"), key.to(tl.float32, bitcast=True))
        tl.debug_barrier()
        tl.store(gains + pick, _TAKEN)
        if SORT:
            tl.store(won + pick, score)
        else:
            tl.store(indices + step, pick)
            if scores is not None:
                tl.store(scores + step, score)

        # List the items that the pick covers better than before.
        count = 0
        for first in range(0, m, BLOCK_M):
            i = first + lanes_m
            after = tl.load(similarity + pick * candidate_stride + i.to(tl.int64) * item_stride, mask=i < m, other=0)
            before = tl.load(coverage + i, mask=i < m, other=0)
            better = after > before
            slot = count + tl.cumsum(better.to(tl.int32), 0) - 1
            tl.store(listed + slot, i, mask=better)
            tl.store(before_of + slot, before, mask=better)
            tl.store(after_of + slot, after, mask=better)
            tl.store(coverage + i, after, mask=better)
            count += tl.sum(better.to(tl.int32), 0)
        tl.debug_barrier()

    if SORT:
        placed = 0
        for first in range(0, ld, BLOCK_N):
            j = first + lanes_n
            taken = tl.load(gains + j, mask=j < ld, other=_INVALID) == _TAKEN
            slot = placed + tl.cumsum(taken.to(tl.int32), 0) - 1
            tl.store(indices + slot, j.to(tl.int64), mask=taken)
            if scores is not None:
                tl.store(scores + slot, tl.load(won + j, mask=taken, other=0.0), mask=taken)
            placed += tl.sum(taken.to(tl.int32), 0)
    for first in range(found, k, BLOCK_N):
        slot = first + lanes_n
        tl.store(indices + slot, tl.full([BLOCK_N], -1, tl.int64), mask=slot < k)
        if scores is not None:
            tl.store(scores + slot, tl.zeros([BLOCK_N], tl.float32), mask=slot < k)


def select_greedily(
    similarity: Tensor,
    parts: Tensor,
    weight: Tensor | None,
    k: int,
    *,
    n: int,
    bits: int,
    scale: Tensor | None = None,
    symmetric: bool = False,
    alpha: float = 1.0,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
    scores: Tensor | None = None,
) -> Tensor:
    """Indices [B, k] from fixed-point similarities [B, M, ld] of ``bits`` fraction bits.

    ``parts`` [B, P, ld] int64: the gains of the first step in P parts. ``scale`` [B]: what a similarity of 1 is worth.
    ``symmetric``: a candidate's column is its row, which is faster to read. ``scores`` [B, k]: takes the winning scores.
    """
    b, m, ld = similarity.shape
    indices = similarity.new_empty((b, k), dtype=torch.int64)
    use = parameters("greedy", similarity.device, n=n, bytes=similarity.element_size())
    _greedy_kernel[(b,)](
        similarity,
        parts,
        scale,
        weight,
        lengths,
        similarity.new_empty((b, ld), dtype=torch.int64),
        similarity.new_empty((2, b, ld), dtype=torch.float32),
        similarity.new_empty((3, b, m)),
        similarity.new_empty((b, m), dtype=torch.int32),
        indices,
        scores,
        m,
        n,
        ld,
        parts.shape[1],
        k,
        2.0**-bits,
        float(alpha),
        *(weight.stride() if weight is not None else (0, 0)),
        lengths.stride(0) if lengths is not None else 0,
        *((ld, 1) if symmetric else (1, ld)),
        WEIGH="none" if weight is None else combine,
        POWER={0.0: "zero", 1.0: "one"}.get(alpha, "any"),
        SORT=sort,
        BLOCK_M=min(next_power_of_2(max(m, 32)), use.pop("BLOCK_M")),
        BLOCK_N=min(next_power_of_2(max(n, 32)), use.pop("BLOCK_N")),
        **use,
    )
    return indices


def greedy_builds(op: str, similarity: str, results: dict[str, str | None]) -> list[Build]:
    """Ahead-of-time builds of the loop: on ``similarity`` integers, with or without scores and scale."""
    pointers = {"similarity": similarity, "coverage": similarity, "parts": "*i64", "weight": "*fp32", "gains": "*i64"}
    pointers |= {"weights": "*fp32", "listed": "*i32", "indices": "*i64"}
    pointers |= {name: kind for name, kind in results.items() if kind}
    absent = {"lengths": None} | {name: kind for name, kind in results.items() if not kind}
    sizes = ("m", "n", "ld", "part_count", "k", "weight_stride_b", "weight_stride_n", "lengths_stride")
    symmetric = absent.get("scale", "") is None
    strides = ("candidate_stride", "item_stride") if symmetric else ("item_stride", "candidate_stride")
    use = default_parameters("greedy", n=576, bytes=int(similarity[2:]) // 8)
    launch = options(use)
    return [
        Build(
            f"{op} greedy loop {weigh}, alpha {power}, {'ascending' if sort else 'in order of choice'}",
            _greedy_kernel,
            {**pointers, **dict.fromkeys((*sizes, strides[0]), "i32"), "unit": "fp32", "alpha": "fp32"},
            {**absent, strides[1]: 1, "WEIGH": weigh, "POWER": power, "SORT": sort, **use},
            **launch,
            divisible=("m", "ld", strides[0]),
        )
        for weigh, power, sort in (("multiply", "one", True), ("add", "any", False))
    ]
