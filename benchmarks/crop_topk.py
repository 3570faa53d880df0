"""HoloV's selection, against the published loop over runs (470 operator calls and its host reads) at both of its settings."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case, same_picks

SHAPES = ((1, 576, 1024, 64, 16), (1, 576, 1024, 192, 5), (1, 576, 4096, 64, 16), (16, 576, 1024, 64, 16))


def cases() -> Iterator[Case]:
    for b, n, d, k, crops in SHAPES:
        x, a = inputs.features(b, n, d), inputs.saliency(b, n)
        providers = {
            "vtkernels": partial(vt.crop_topk, a, x, k, crops=crops),
            "vtkernels without features": partial(vt.crop_topk, a, None, k, crops=crops),
            "vtkernels full": partial(vt.crop_topk, a, x, k, crops=crops, variant="full"),
            "published": partial(published.holov, x, a, k, crops=crops),
            "reference": partial(vt.reference.crop_topk, a, x, k, crops=crops),
        }
        yield Case("crop_topk", {"B": b, "N": n, "D": d, "K": k}, providers, partial(_gate, x, a, k, crops), seconds=6)


def _gate(x: torch.Tensor, a: torch.Tensor, k: int, crops: int) -> None:
    want = published.holov(x, a, k, crops=crops)
    for features in (x, None):
        same_picks(vt.crop_topk(a, features, k, crops=crops), want)
