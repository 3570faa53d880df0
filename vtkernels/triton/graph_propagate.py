"""G-Prune: products of all pairs in tiles, then weights, degrees and all iterations in one launch.

Each iteration needs all scores of the one before. One program an image would read the matrix alone (21 MB at N = 2304, six
times), one launch an iteration would be one launch each. So an image is given to a group of programs that fit on the card
together, each with rows of its own, and they wait for each other between iterations; only the vector of scores passes between
them. The launch is cooperative: no program waits for one that cannot start. Where images outnumber half the multiprocessors,
and in the interpreter, the group is one program and nobody waits.

The sum of a row has a fixed order, so the bits do not depend on the size of the group.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import row_length
from vtkernels.triton._gram import cosine, direction, fold, mirror_diagonal, padded, products, scattered, tile_builds, triangle
from vtkernels.triton._launch import (
    Build,
    default_parameters,
    interpreted,
    multiprocessors,
    options,
    parameters,
    refuse_float64,
)

_SMALLEST = 2.0**-126  # of the normal float32 numbers
_SMALLEST_EDGE = tl.constexpr(_SMALLEST)  # an edge whose weight underflows is still an edge


@triton.jit(do_not_specialize=("n", "tiles", "lengths_stride"))
def _products_kernel(
    features,
    lengths,
    product,  # [B, n, ld] float32, symmetric
    square,  # [B, n] float32: its diagonal
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
    tile = products(features + b * stride_b, i, j, valid, channels, stride_n, stride_d, False, BLOCK, BLOCK_D, WIDEN)
    if row == column:
        tile = mirror_diagonal(tile, BLOCK)
        diagonal = tl.where(lanes[:, None] == lanes[None, :], tile, 0.0)
        tl.store(square + b * n + i, tl.sum(diagonal, 1), mask=i < n)
    product += b * n * ld
    tl.store(product + i[:, None].to(tl.int64) * ld + j[None, :], tile, mask=(i < n)[:, None] & (j < ld)[None, :])
    tl.store(product + j[:, None].to(tl.int64) * ld + i[None, :], tl.trans(tile), mask=(j < n)[:, None] & (i < ld)[None, :])


@triton.jit
def _wait_for_all(arrived, target):
    """Returns when ``target`` programs have come here, with all they stored."""
    tl.debug_barrier()
    seen = tl.atomic_add(arrived, 1, sem="acq_rel") + 1
    while seen < target:
        seen = tl.atomic_add(arrived, 0, sem="acquire")
    tl.debug_barrier()


@triton.jit(do_not_specialize=("group", "iterations"))
def _propagate_kernel(
    matrix,  # [B, n, ld] float32: products, replaced by the weights of the edges
    square,  # [B, n] float32: squared norms
    total,  # [B, n] float32: row sums of the weights
    share,  # [2, B, n] float32: score over row sum, of this iteration and of the next
    arrived,  # [B] int32, 0
    scores,  # [B, n] float32
    degree,  # [B, n] int32
    n,
    ld,
    group,
    iterations,
    threshold,
    per_temperature,
    TOGETHER: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    member, images = tl.program_id(0) % group, tl.num_programs(0) // group
    b = (tl.program_id(0) // group).to(tl.int64)
    matrix += b * n * ld
    square += b * n
    total += b * n
    scores += b * n
    degree += b * n
    arrived += b
    share += b * n
    other = images.to(tl.int64) * n  # from one half of share to the other
    rows, lanes = tl.arange(0, ROWS), tl.arange(0, COLUMNS)

    for first in range(member * ROWS, n, group * ROWS):
        i = first + rows
        square_i = tl.load(square + i, mask=i < n, other=0.0)
        power_i, fraction_i = direction(square_i)
        line = matrix + i[:, None].to(tl.int64) * ld
        sums = tl.zeros([ROWS, COLUMNS], tl.float32)
        edges = tl.zeros([ROWS, COLUMNS], tl.int32)
        for start in range(0, ld, COLUMNS):
            j = start + lanes
            inside = (i < n)[:, None] & (j < ld)[None, :]
            power_j, fraction_j = direction(tl.load(square + j, mask=j < n, other=0.0))
            c = cosine(tl.load(line + j[None, :], mask=inside, other=0.0), power_i, fraction_i, power_j, fraction_j)
            # rounding may leave the cosine of a row with itself, or with its copy, beside 1
            own = tl.where(fraction_i > 0, 1.0, 0.0)
            c = tl.where(i[:, None] == j[None, :], own[:, None], tl.minimum(c, 1.0))
            edge = c >= threshold
            weight = tl.where(edge, tl.maximum(tl.exp((c - 1.0) * per_temperature), _SMALLEST_EDGE), 0.0)
            tl.store(line + j[None, :], weight, mask=inside)
            sums += weight
            edges += edge.to(tl.int32)
        count = tl.sum(edges, 1)
        row_sum = fold(sums, ROWS, COLUMNS)
        norm = tl.where(fraction_i > 0, tl.sqrt_rn(square_i), 0.0)
        tl.store(total + i, row_sum, mask=i < n)
        tl.store(share + i, tl.div_rn(norm, tl.where(row_sum > 0, row_sum, 1.0)), mask=i < n)
        tl.store(degree + i, count, mask=i < n)
        tl.store(scores + i, tl.div_rn(norm, tl.maximum(count, 1).to(tl.float32)), mask=i < n)

    for step in range(0, iterations):
        if TOGETHER:
            _wait_for_all(arrived, group * (step + 1))
        else:
            tl.debug_barrier()
        now = share + step % 2 * other
        then = share + (step + 1) % 2 * other
        for first in range(member * ROWS, n, group * ROWS):
            i = first + rows
            line = matrix + i[:, None].to(tl.int64) * ld
            sums = tl.zeros([ROWS, COLUMNS], tl.float32)
            for start in range(0, ld, COLUMNS):
                j = start + lanes
                weight = tl.load(line + j[None, :], mask=(i < n)[:, None] & (j < ld)[None, :], other=0.0)
                # other programs wrote it: from the cache that all share
                x = tl.load(now + j, mask=j < n, other=0.0, cache_modifier=".cg")
                sums = tl.fma(weight, tl.broadcast_to(x[None, :], [ROWS, COLUMNS]), sums)
            mass = fold(sums, ROWS, COLUMNS)
            row_sum = tl.load(total + i, mask=i < n, other=0.0)
            count = tl.load(degree + i, mask=i < n, other=0)
            tl.store(then + i, tl.div_rn(mass, tl.where(row_sum > 0, row_sum, 1.0)), mask=i < n)
            tl.store(scores + i, tl.div_rn(mass, tl.maximum(count, 1).to(tl.float32)), mask=i < n)


def graph_propagate(
    features: Tensor,
    *,
    threshold: float = 0.5,
    temperature: float = 0.03,
    iterations: int = 5,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Launcher of the op. Workspace: a float32 matrix of N x N an image. Two launches."""
    refuse_float64("graph_propagate", features=features)
    b, n, channels = features.shape
    scores = features.new_empty((b, n), dtype=torch.float32)
    degree = features.new_empty((b, n), dtype=torch.int32)
    if b == 0 or n == 0:
        return scores, degree
    shape = {"n": n, "bytes": features.element_size(), "scattered": scattered(features)}
    use = parameters("graph_propagate_products", features.device, **shape)
    ld, tiles = padded(n), triton.cdiv(n, use["BLOCK"])
    matrix = features.new_empty((b, n, ld), dtype=torch.float32)
    square = features.new_empty((b, n), dtype=torch.float32)
    _products_kernel[(b * tiles * (tiles + 1) // 2,)](
        features,
        lengths,
        matrix,
        square,
        n,
        channels,
        ld,
        tiles,
        *features.stride(),
        lengths.stride(0) if lengths is not None else 0,
        WIDEN=interpreted() and features.dtype == torch.bfloat16,
        **use,
    )
    use = parameters("graph_propagate", features.device, n=n)
    group = max(1, min(multiprocessors(features.device) // b, triton.cdiv(n, use["ROWS"])))
    if group > 1:
        use["launch_cooperative_grid"] = True
    _propagate_kernel[(b * group,)](
        matrix,
        square,
        features.new_empty((b, n), dtype=torch.float32),
        features.new_empty((2, b, n), dtype=torch.float32),
        features.new_zeros(b if group > 1 else 0, dtype=torch.int32),
        scores,
        degree,
        n,
        ld,
        group,
        iterations,
        max(threshold, _SMALLEST),
        1 / max(temperature, _SMALLEST),
        TOGETHER=group > 1,
        **use,
    )
    return scores, degree


def _propagate_builds() -> list[Build]:
    pointers = {"matrix": "*fp32", "square": "*fp32", "total": "*fp32", "share": "*fp32", "arrived": "*i32", "scores": "*fp32"}
    numbers = dict.fromkeys(("n", "ld", "group", "iterations"), "i32") | dict.fromkeys(("threshold", "per_temperature"), "fp32")
    use = default_parameters("graph_propagate", n=576)
    launch = options(use)
    return [
        Build(
            f"graph_propagate iterations {'together' if together else 'alone'}",
            _propagate_kernel,
            {**pointers, "degree": "*i32", **numbers},
            {"TOGETHER": together, **use},
            **launch,
            divisible=("n", "ld"),
        )
        for together in (True, False)
    ]


COMPILE = [
    *tile_builds("graph_propagate", _products_kernel, "graph_propagate_products", {"product": "*fp32", "square": "*fp32"}),
    *_propagate_builds(),
]
