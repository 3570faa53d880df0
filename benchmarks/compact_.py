"""Kept rows moved to the front in place, against a gather and a copy back."""

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
            "vtkernels": partial(vt.compact_, x.clone(), indices),
            "gather + copy_": partial(_gather_copy, x.clone(), indices),
            "reference": partial(vt.reference.compact_, x.clone(), indices),
        }
        yield Case("compact_", {"B": b, "N": n, "D": d, "K": k}, providers, partial(_gate, x, indices), seconds=2)


def _gather_copy(x: torch.Tensor, indices: torch.Tensor) -> None:
    x[:, : indices.shape[1]] = x.gather(1, indices.unsqueeze(-1).expand(-1, -1, x.shape[2]))


def _gate(x: torch.Tensor, indices: torch.Tensor) -> None:
    ours, theirs = x.clone(), x.clone()
    vt.compact_(ours, indices)
    _gather_copy(theirs, indices)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
