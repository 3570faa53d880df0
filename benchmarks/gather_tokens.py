"""Kept rows, against torch.gather without the -1 rule."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs
from .harness import Case

SHAPES = ((1, 576, 1024, 64), (1, 2880, 4096, 320), (16, 576, 1024, 64))


def cases() -> Iterator[Case]:
    for b, n, d, k in SHAPES:
        x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
        providers = {
            "vtkernels": partial(vt.gather_tokens, x, indices),
            "torch.gather": partial(_gather, x, indices),
            "reference": partial(vt.reference.gather_tokens, x, indices),
        }
        yield Case("gather_tokens", {"B": b, "N": n, "D": d, "K": k}, providers, partial(_gate, x, indices), seconds=2)


def _gather(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _gate(x: torch.Tensor, indices: torch.Tensor) -> None:
    torch.testing.assert_close(vt.gather_tokens(x, indices), _gather(x, indices), rtol=0, atol=0)
