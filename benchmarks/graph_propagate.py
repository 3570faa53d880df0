"""Propagation by vector-matrix products, against the published matrix power of the same graph."""

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
        sizes = {"B": s.rows, "N": s.tokens, "D": s.language}
        yield Case("graph_propagate", sizes, partial(work, s.rows, s.tokens, s.language), s.name)


def work(b: int, n: int, d: int) -> Work:
    x = inputs.features(b, n, d)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.graph_propagate, x),
        "published": partial(published.graph_propagate, x),
        "reference": partial(vt.reference.graph_propagate, x),
        **floors.gram(x),
    }
    return Work(providers, _agree)


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got[0], ours[0], rtol=2e-4, atol=0)
