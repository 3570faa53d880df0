"""Class-token ranking in one call, against the map, its row and torch.topk."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case, same_picks

SHAPES = ((1, 16, 577, 64, 64), (5, 16, 577, 64, 64))


def cases() -> Iterator[Case]:
    for b, h, t, d, k in SHAPES:
        query, key = inputs.query_key(b, h, t, d)
        providers = {
            "vtkernels": partial(vt.attention_topk, query[:, :, 0], key, k),
            "full map": partial(_published, query, key, k),
            "reference": partial(vt.reference.attention_topk, query[:, :, 0], key, k),
        }
        shape = {"B": b, "N": t - 1, "D": d, "H": h, "K": k}
        yield Case("attention_topk", shape, providers, partial(_gate, query, key, k), seconds=3)


def _published(query: torch.Tensor, key: torch.Tensor, k: int) -> torch.Tensor:
    return published.cls_attention(query, key).topk(k).indices.sort(dim=1).values


def _gate(query: torch.Tensor, key: torch.Tensor, k: int) -> None:
    same_picks(vt.attention_topk(query[:, :, 0], key, k)[0], _published(query, key, k))
