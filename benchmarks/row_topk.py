"""Whole image rows, against their sums, torch.topk and the indices spelled out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case, same_picks

SHAPES = ((1, 576, 24, 6), (1, 2304, 48, 12), (32, 576, 24, 6))


def cases() -> Iterator[Case]:
    for b, n, width, rows in SHAPES:
        scores = inputs.saliency(b, n)
        providers = {
            "vtkernels": partial(vt.row_topk, scores, rows, width=width),
            "published": partial(published.row_topk, scores, rows, width),
            "reference": partial(vt.reference.row_topk, scores, rows, width=width),
        }
        gate = partial(_gate, scores, rows, width)
        yield Case("row_topk", {"B": b, "N": n, "K": rows * width}, providers, gate, seconds=2)


def _gate(scores: torch.Tensor, rows: int, width: int) -> None:
    same_picks(vt.row_topk(scores, rows, width=width), published.row_topk(scores, rows, width))
