"""Means of kept tokens and what they absorb, against a product with the membership matrix and against index_add."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs
from .harness import Case

SHAPES = ((1, 576, 4096, 64), (1, 2880, 4096, 320), (16, 576, 1024, 64))


def cases() -> Iterator[Case]:
    for b, n, d, k in SHAPES:
        x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
        slots = vt.route_tokens(x, indices)
        providers = {
            "vtkernels": partial(vt.merge_tokens, x, indices, slots),
            "torch.bmm": partial(_product, x, k, slots),
            "index_add": partial(_index_add, x, k, slots),
            "reference": partial(vt.reference.merge_tokens, x, indices, slots),
        }
        yield Case("merge_tokens", {"B": b, "N": n, "D": d, "K": k}, providers, partial(_gate, x, indices, slots), seconds=4)


def _product(x: torch.Tensor, k: int, slots: torch.Tensor) -> torch.Tensor:
    member = (slots.unsqueeze(1) == torch.arange(k).unsqueeze(1)).to(x.dtype)
    return member @ x / member.sum(2, keepdim=True)


def _index_add(x: torch.Tensor, k: int, slots: torch.Tensor) -> torch.Tensor:
    b, n, d = x.shape
    flat = (slots + k * torch.arange(b).unsqueeze(1)).flatten()
    total = x.new_zeros(b * k, d).index_add(0, flat, x.reshape(b * n, d))
    return (total / flat.bincount(minlength=b * k).unsqueeze(1)).view(b, k, d)


def _gate(x: torch.Tensor, indices: torch.Tensor, slots: torch.Tensor) -> None:
    got = vt.merge_tokens(x, indices, slots)
    for other in (_product, _index_add):
        torch.testing.assert_close(got, other(x, indices.shape[1], slots), atol=1e-4, rtol=1e-4)
