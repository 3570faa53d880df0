"""Kept rows moved to the front in place, against a gather and a copy back."""

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
            yield Case("compact_", sizes, partial(work, s.rows, s.tokens, s.language, k), s.name)


def work(b: int, n: int, d: int, k: int) -> Work:
    """Every provider works in place, on rows of its own."""
    x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.compact_, x.clone(), indices),
        "gather + copy_": partial(_gather_copy, x.clone(), indices),
        "reference": partial(vt.reference.compact_, x.clone(), indices),
        **floors.copy(2 * b * k * d * x.element_size() + indices.nbytes),
    }
    return Work(providers, _agree)


def _gather_copy(x: torch.Tensor, indices: torch.Tensor) -> None:
    x[:, : indices.shape[1]] = x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours, rtol=0, atol=0)
