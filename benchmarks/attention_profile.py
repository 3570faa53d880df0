"""Received and given attention of every token, against the map that is stored, averaged over heads, rows and columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case

SHAPES = ((1, 16, 577, 64), (5, 16, 577, 64))


def cases() -> Iterator[Case]:
    for softmax in (True, False):
        for b, h, t, d in SHAPES:
            query, key = inputs.query_key(b, h, t, d)
            providers = {
                "vtkernels": partial(vt.attention_profile, query, key, softmax=softmax),
                "published": partial(published.attention_profile, query, key, softmax=softmax),
                "reference": partial(vt.reference.attention_profile, query, key, softmax=softmax),
            }
            shape = {"B": b, "N": t - 1, "D": d, "H": h}
            name = "attention_profile" if softmax else "attention_profile(softmax=False)"
            yield Case(name, shape, providers, partial(_gate, query, key, softmax), seconds=6)


def _gate(query: torch.Tensor, key: torch.Tensor, softmax: bool) -> None:
    ours, theirs = (f(query, key, softmax=softmax) for f in (vt.attention_profile, published.attention_profile))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
