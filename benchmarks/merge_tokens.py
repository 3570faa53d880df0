"""Means of kept tokens and what they absorb, against a product with the membership matrix and against index_add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs
from .clock import Call
from .harness import Case, Results, Work
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            sizes = {"B": s.rows, "N": s.tokens, "D": s.language, "K": k}
            yield Case("merge_tokens", sizes, partial(work, s.rows, s.tokens, s.language, k), s.name)


def work(b: int, n: int, d: int, k: int) -> Work:
    x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
    slots = vt.route_tokens(x, indices)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.merge_tokens, x, indices, slots),
        "torch.bmm": partial(_product, x, k, slots),
        "index_add": partial(_index_add, x, k, slots),
        "reference": partial(vt.reference.merge_tokens, x, indices, slots),
        **floors.copy(x.nbytes + slots.nbytes + b * k * d * x.element_size()),
    }
    return Work(providers, _agree, host_readers=frozenset({"index_add"}))  # bincount looks for the greatest


def _product(x: torch.Tensor, k: int, slots: torch.Tensor) -> torch.Tensor:
    member = (slots.unsqueeze(1) == torch.arange(k, device=x.device).unsqueeze(1)).to(x.dtype)
    return member @ x / member.sum(2, keepdim=True)


def _index_add(x: torch.Tensor, k: int, slots: torch.Tensor) -> torch.Tensor:
    b, n, d = x.shape
    flat = (slots + k * torch.arange(b, device=x.device).unsqueeze(1)).flatten()
    total = x.new_zeros(b * k, d).index_add(0, flat, x.reshape(b * n, d))
    return (total / flat.bincount(minlength=b * k).unsqueeze(1)).view(b, k, d)


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours, atol=1e-4, rtol=1e-4)
