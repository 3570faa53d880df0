"""Connected components of the thresholded cosine: edges as bits, tile by tile, then one program an image. Two launches.

The edges are a bit matrix (41 KB at N = 576), word by word so that neighbouring tokens lie side by side, and so are the
members of every component, in the row of its root. A round takes for each token its first neighbour that is no member,
``edges & ~members``, and lets the greater of the two roots point to the lesser; of several offers the least wins. Pointers are
then doubled until each token points to its root.

Pointers only ever fall, so there are no cycles, and the root that remains is the smallest token of its component, whatever
order the offers came in. A component that does not point on made an offer to a greater one, which now points to it or to a
lesser one; then its next offer goes to that, and it points on. So two rounds at least halve the components that are not
complete, and when no token has a neighbour outside, all are. A round reads two N x N bit matrices.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton._common import row_length
from vtkernels.triton._gram import cosine, direction, mirror_diagonal, products, triangle
from vtkernels.triton._launch import (
    Build,
    default_parameters,
    interpreted,
    next_power_of_2,
    options,
    parameters,
    refuse_float64,
)

_SMALLEST = torch.finfo(torch.float32).tiny  # what is above 0 in float64 stays above 0 in float32
_NOBODY = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _words(edge, BLOCK: tl.constexpr):
    """[BLOCK, BLOCK] bool -> int32 [BLOCK, BLOCK / 32], bit c of word w for column 32 w + c."""
    bit = tl.full([BLOCK, BLOCK // 32, 32], 1, tl.int32) << tl.arange(0, 32)[None, None, :]
    return tl.sum(tl.where(tl.reshape(edge, [BLOCK, BLOCK // 32, 32]), bit, 0), 2)  # no bit twice: the sum is their union


@triton.jit(do_not_specialize=("words", "tiles", "lengths_stride"))
def _edges_kernel(
    features,
    lengths,
    edges,  # [B, words, n] int32
    members,  # [B, words, n] int32
    n,
    channels,
    words,
    tiles,
    threshold,
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
    if row * BLOCK < valid:  # nobody reads what is behind the length
        lanes = tl.arange(0, BLOCK)
        i, j = row * BLOCK + lanes, column * BLOCK + lanes
        product, square_i, square_j = products(
            features + b * stride_b, i, j, valid, channels, stride_n, stride_d, True, BLOCK, BLOCK_D, WIDEN
        )
        power_i, fraction_i = direction(square_i)
        power_j, fraction_j = direction(square_j)
        c = cosine(product, power_i, fraction_i, power_j, fraction_j)
        if row == column:
            c = mirror_diagonal(c, BLOCK)
        # a token is no neighbour of itself; rows behind the length are zero, so they have no edges
        edge = (c >= threshold) & (i[:, None] != j[None, :])

        lane = tl.arange(0, BLOCK // 32)
        mine = tl.where((i // 32)[:, None] == (column * (BLOCK // 32) + lane)[None, :], 1, 0) << (i % 32)[:, None]
        at = (b * words + column * (BLOCK // 32) + lane)[None, :] * n + i[:, None]
        inside = (i < n)[:, None] & (column * (BLOCK // 32) + lane < words)[None, :]
        tl.store(edges + at, _words(edge, BLOCK), mask=inside)
        tl.store(members + at, mine, mask=inside)
        if row != column:
            at = (b * words + row * (BLOCK // 32) + lane)[None, :] * n + j[:, None]
            inside = (j < n)[:, None] & (row * (BLOCK // 32) + lane < words)[None, :]
            tl.store(edges + at, _words(tl.trans(edge), BLOCK), mask=inside)
            tl.store(members + at, tl.zeros([BLOCK, BLOCK // 32], tl.int32), mask=inside)


@triton.jit
def _lowest_bit(word):
    """Place of the lowest bit that is set, by the exponent of the power of two it stands for; something else where none is."""
    return ((word & -word).to(tl.uint32, bitcast=True).to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit(do_not_specialize=("words", "lengths_stride"))
def _components_kernel(
    edges,
    members,
    parent,  # [B, n] int32
    lengths,
    labels,  # [B, n] int64
    n,
    words,
    lengths_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    valid = row_length(lengths, lengths_stride, b, n)
    edges += b * words * n
    members += b * words * n
    parent += b * n
    token, lane = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    inside = token < valid
    root = token
    tl.store(parent + token, root, mask=inside)

    growing = tl.minimum(valid, 1)
    while growing > 0:
        tl.debug_barrier()  # what other threads wrote to parent and members is read from here on
        neighbour = tl.full([BLOCK_N], _NOBODY, tl.int32)
        edge, member = edges + lane[:, None] * n, members + lane[:, None] * n
        for first in range(0, tl.cdiv(valid, 32), BLOCK_W):
            word = (first + lane)[:, None]
            read = (word * 32 < valid) & inside[None, :]
            foreign = tl.load(edge + token[None, :], mask=read, other=0)
            foreign &= ~tl.load(member + root[None, :], mask=read, other=0)
            found = tl.where(foreign != 0, word * 32 + _lowest_bit(foreign), _NOBODY)
            neighbour = tl.minimum(neighbour, tl.min(found, 0))
            edge += BLOCK_W * n
            member += BLOCK_W * n
        offers = neighbour != _NOBODY
        other = tl.load(parent + neighbour, mask=offers, other=0)
        tl.debug_barrier()  # all roots are read before one changes
        tl.atomic_min(parent + tl.maximum(root, other), tl.minimum(root, other), mask=offers, sem="relaxed", scope="cta")
        growing = tl.max(offers.to(tl.int32), 0)

        if growing > 0:
            before = root
            tl.debug_barrier()
            root = tl.load(parent + token, mask=inside, other=0)
            moving = growing
            while moving > 0:
                further = tl.load(parent + root, mask=inside, other=0)
                moving = tl.max((further != root).to(tl.int32), 0)
                root = further
                tl.debug_barrier()
                tl.store(parent + token, root, mask=inside)
                tl.debug_barrier()
            bit = tl.full([BLOCK_N], 1, tl.int32) << (token % 32)
            own = members + (token // 32).to(tl.int64) * n + root
            tl.atomic_or(own, bit, mask=inside & (root != before), sem="relaxed", scope="cta")
    tl.store(labels + b * n + token, tl.where(inside, root, -1).to(tl.int64), mask=token < n)


def token_clusters(features: Tensor, *, threshold: float, lengths: Tensor | None = None) -> Tensor:
    """As ``reference.token_clusters``. Workspace: two bits for every pair of tokens."""
    refuse_float64("token_clusters", features=features)
    b, n, channels = features.shape
    labels = features.new_empty((b, n), dtype=torch.int64)
    if b == 0 or n == 0:
        return labels
    words, lengths_stride = triton.cdiv(n, 32), 0 if lengths is None else lengths.stride(0)
    edges = features.new_empty((b, words, n), dtype=torch.int32)
    members = torch.empty_like(edges)
    use = parameters("token_clusters_edges", features.device, n=n, bytes=features.element_size())
    tiles = triton.cdiv(n, use["BLOCK"])
    _edges_kernel[(b * tiles * (tiles + 1) // 2,)](
        features,
        lengths,
        edges,
        members,
        n,
        channels,
        words,
        tiles,
        max(threshold, _SMALLEST),
        *features.stride(),
        lengths_stride,
        WIDEN=interpreted() and features.dtype == torch.bfloat16,
        **use,
    )
    parent = features.new_empty((b, n), dtype=torch.int32)
    use = parameters("token_clusters_components", features.device, n=n)
    _components_kernel[(b,)](
        edges, members, parent, lengths, labels, n, words, lengths_stride, BLOCK_N=next_power_of_2(n), **use
    )
    return labels


def _builds() -> list[Build]:
    builds = []
    for n, dtype in ((576, "fp16"), (576, "fp32"), (2880, "fp16"), (2880, "fp32")):
        use = default_parameters("token_clusters_edges", n=n, bytes=int(dtype[2:]) // 8)
        builds.append(
            Build(
                f"token_clusters edges N={n} {dtype}",
                _edges_kernel,
                {
                    "features": f"*{dtype}",
                    "edges": "*i32",
                    "members": "*i32",
                    **dict.fromkeys(("n", "channels", "words", "tiles", "stride_b", "stride_n", "lengths_stride"), "i32"),
                    "threshold": "fp32",
                },
                {"lengths": None, "stride_d": 1, "BLOCK": use["BLOCK"], "BLOCK_D": use["BLOCK_D"], "WIDEN": False},
                **options(use),
                divisible=("n", "channels", "stride_b", "stride_n"),
            )
        )
    for n in (576, 2880):
        use = default_parameters("token_clusters_components", n=n)
        builds.append(
            Build(
                f"token_clusters components N={n}",
                _components_kernel,
                {
                    "edges": "*i32",
                    "members": "*i32",
                    "parent": "*i32",
                    "labels": "*i64",
                    **dict.fromkeys(("n", "words", "lengths_stride"), "i32"),
                },
                {"lengths": None, "BLOCK_N": next_power_of_2(n), "BLOCK_W": use["BLOCK_W"]},
                **options(use),
                divisible=("n",),
            )
        )
    return builds


COMPILE = _builds()
