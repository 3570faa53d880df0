"""Kept rows, against torch.gather without the -1 rule."""

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
            yield Case("gather_tokens", sizes, partial(work, s.rows, s.tokens, s.language, k), s.name)


def work(b: int, n: int, d: int, k: int) -> Work:
    x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.gather_tokens, x, indices),
        "torch.gather": partial(_gather, x, indices),
        "reference": partial(vt.reference.gather_tokens, x, indices),
        **floors.copy(2 * b * k * d * x.element_size() + indices.nbytes),
    }
    return Work(providers, _agree)


def _gather(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours, rtol=0, atol=0)
