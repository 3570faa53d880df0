"""Top-k with the tie rule, against torch.topk (which promises none) and a stable sort (which does)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs
from .harness import Case, same_picks

SHAPES = ((1, 576, 64), (1, 2880, 320), (32, 576, 64))


def cases() -> Iterator[Case]:
    for b, n, k in SHAPES:
        scores = inputs.saliency(b, n)
        providers = {
            "vtkernels": partial(vt.topk_select, scores, k),
            "torch.topk + sort": partial(_topk, scores, k),
            "reference": partial(vt.reference.topk_select, scores, k),
        }
        yield Case("topk_select", {"B": b, "N": n, "K": k}, providers, partial(_gate, scores, k), seconds=2)


def _topk(scores: torch.Tensor, k: int) -> torch.Tensor:
    return scores.topk(k, sorted=False).indices.sort(dim=1).values


def _gate(scores: torch.Tensor, k: int) -> None:
    same_picks(vt.topk_select(scores, k), _topk(scores, k))
