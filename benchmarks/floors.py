"""What no implementation of an op can get below without doing less: one matrix product, or moving the bytes once.

Results go to memory that is there already, so that a floor is not held up by the allocator.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from . import inputs
from .clock import Call

PRODUCT, COPY = "torch.mm floor", "memory copy floor"


def product(a: Tensor, b: Tensor) -> dict[str, Call]:
    """``a @ b`` of [B, M, D] and [B, D, N]: no use of symmetry, no normalising, nothing selected."""
    out = a.new_empty(a.shape[0], a.shape[1], b.shape[2])
    return {PRODUCT: partial(torch.bmm, a, b, out=out)}


def gram(x: Tensor) -> dict[str, Call]:
    """The Gram matrix of [B, N, D]."""
    return product(x, x.transpose(1, 2))


def maps(query: Tensor, key: Tensor) -> dict[str, Call]:
    """Every head's ``q @ k.T`` of [B, H, T, d], one after the other into one [T, T]: a map per head would not fit."""
    out = query.new_empty(query.shape[2], key.shape[2])
    pairs = [(q, k.T) for q, k in zip(query.unbind(0), key.unbind(0), strict=True) for q, k in zip(q, k, strict=True)]

    def products() -> Tensor:
        for q, k in pairs:
            torch.mm(q, k, out=out)
        return out

    return {PRODUCT: products}


def copy(moved: int) -> dict[str, Call]:
    """``copy_`` of half of ``moved`` bytes: as many are read and written together as the op must at least."""
    source = torch.ones(max(1, moved // 2), dtype=torch.uint8, device=inputs.device)
    return {COPY: partial(torch.empty_like(source).copy_, source)}
