"""Top-k with the tie rule, against torch.topk (which promises none), alone and with its result brought into token order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs
from .clock import Call
from .harness import Case, Results, Work, same_picks
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            yield Case("topk_select", {"B": s.rows, "N": s.tokens, "K": k}, partial(work, s.rows, s.tokens, k), s.name)


def work(b: int, n: int, k: int) -> Work:
    scores = inputs.saliency(b, n)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.topk_select, scores, k),
        "torch.topk": partial(_topk, scores, k),
        "torch.topk + sort": partial(_topk_sort, scores, k),
        "reference": partial(vt.reference.topk_select, scores, k),
        **floors.copy(scores.nbytes + 8 * b * k),
    }
    return Work(providers, _agree)


def _topk(scores: torch.Tensor, k: int) -> torch.Tensor:
    return scores.topk(k, sorted=False).indices


def _topk_sort(scores: torch.Tensor, k: int) -> torch.Tensor:
    return _topk(scores, k).sort(dim=1).values


def _agree(got: Results, ours: Results) -> None:
    same_picks(got[0], ours[0])
