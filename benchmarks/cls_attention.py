"""Saliency of one class token, against the full map that `output_attentions=True` materialises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs, published
from .clock import Call
from .harness import Case, Results, Work
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        if s.class_token:
            b, h = s.rows * s.crops, s.heads
            sizes = {"B": b, "N": s.patches, "D": s.head_dim, "H": h}
            yield Case("cls_attention", sizes, partial(work, b, h, s.patches + 1, s.head_dim), s.name)


def work(b: int, h: int, t: int, d: int) -> Work:
    query, key = inputs.query_key(b, h, t, d)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.cls_attention, query[:, :, 0], key),
        "full map": partial(published.cls_attention, query, key),
        "reference": partial(vt.reference.cls_attention, query[:, :, 0], key),
        **floors.copy(key.nbytes + query[:, :, 0].nbytes + 4 * b * (t - 1)),
    }
    return Work(providers, _agree)


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours)
