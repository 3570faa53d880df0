"""Saliency of one class token, against the full map that `output_attentions=True` materialises."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case

SHAPES = ((1, 16, 577, 64), (5, 16, 577, 64))


def cases() -> Iterator[Case]:
    for b, h, t, d in SHAPES:
        query, key = inputs.query_key(b, h, t, d)
        providers = {
            "vtkernels": partial(vt.cls_attention, query[:, :, 0], key),
            "full map": partial(published.cls_attention, query, key),
            "reference": partial(vt.reference.cls_attention, query[:, :, 0], key),
        }
        yield Case("cls_attention", {"B": b, "N": t - 1, "D": d, "H": h}, providers, partial(_gate, query, key), seconds=3)


def _gate(query: torch.Tensor, key: torch.Tensor) -> None:
    torch.testing.assert_close(vt.cls_attention(query[:, :, 0], key), published.cls_attention(query, key))
