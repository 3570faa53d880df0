"""The whole selection against the published loop, against its own reference, and against one torch.mm of the Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case, same_picks

# LLaVA-1.5 at its published budgets, LLaVA-NeXT as one row of five crops, a serving batch
SHAPES = ((1, 576, 1024, 64), (1, 576, 1024, 192), (1, 729, 1152, 128), (1, 2880, 1024, 320), (16, 576, 1024, 64))


def cases() -> Iterator[Case]:
    for b, n, d, k in SHAPES:
        x, a = inputs.features(b, n, d), inputs.saliency(b, n)
        providers = {
            "vtkernels": partial(vt.scope_select, x, a, k),
            "published": partial(published.scope, x, a, k),
            "torch.mm floor": partial(torch.bmm, x, x.transpose(1, 2)),
        }
        gate = partial(_gate, x, a, k)
        yield Case("scope_select", {"B": b, "N": n, "D": d, "K": k}, providers, gate, seconds=30 if n > 2000 else 6)


def _gate(x: torch.Tensor, a: torch.Tensor, k: int) -> None:
    same_picks(vt.scope_select(x, a, k), published.scope(x, a, k), allowed=0.02)
