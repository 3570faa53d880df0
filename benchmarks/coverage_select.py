"""The greedy loop alone, on a similarity that is already there."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import normalize

import vtkernels as vt

from . import inputs, published
from .harness import Case, same_picks

SHAPES = ((1, 576, 64), (1, 576, 192), (1, 2880, 320))


def cases() -> Iterator[Case]:
    for b, n, k in SHAPES:
        x = normalize(inputs.features(b, n, 256), dim=-1)
        similarity, weight = x @ x.transpose(1, 2), inputs.saliency(b, n)
        providers = {
            "vtkernels": partial(vt.coverage_select, similarity, weight, k),
            "published": partial(published.greedy_coverage, similarity, weight, k),
            "reference": partial(vt.reference.coverage_select, similarity, weight, k),
        }
        gate = partial(_gate, similarity, weight, k)
        yield Case("coverage_select", {"B": b, "N": n, "K": k}, providers, gate, seconds=30 if n > 2000 else 6)


def _gate(similarity: torch.Tensor, weight: torch.Tensor, k: int) -> None:
    same_picks(vt.coverage_select(similarity, weight, k)[0], published.greedy_coverage(similarity, weight, k), allowed=0.02)
