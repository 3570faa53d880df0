"""Received and given attention of every token, against the map that is stored, averaged over heads, rows and columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch

import vtkernels as vt

from . import floors, inputs, published
from .clock import Call
from .harness import Case, Results, Work
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for softmax in (True, False):
        name = "attention_profile" if softmax else "attention_profile(softmax=False)"
        for s in shapes:
            b, prefix = s.rows * s.crops, int(s.class_token)
            sizes = {"B": b, "N": s.patches, "D": s.head_dim, "H": s.heads}
            build = partial(work, b, s.heads, s.patches + prefix, s.head_dim, prefix=prefix, softmax=softmax)
            yield Case(name, sizes, build, s.name)


def work(b: int, h: int, t: int, d: int, *, prefix: int = 1, softmax: bool = True) -> Work:
    query, key = inputs.query_key(b, h, t, d)
    how: dict[str, Any] = {"prefix": prefix, "softmax": softmax}
    moved = query.nbytes + key.nbytes + 8 * b * (t - prefix)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.attention_profile, query, key, **how),
        "published": partial(published.attention_profile, query, key, **how),
        "reference": partial(vt.reference.attention_profile, query, key, **how),
        # without a softmax the means of a map are those of a vector: no map is needed
        **(floors.maps(query, key) if softmax else floors.copy(moved)),
    }
    return Work(providers, agree)


def agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours, rtol=1e-4, atol=1e-6)
