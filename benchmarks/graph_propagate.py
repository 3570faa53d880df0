"""Propagation by vector-matrix products, against the published matrix power of the same graph."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs, published
from .harness import Case

# the base crop of LLaVA, the merged 2 x 2 grid of LLaVA-NeXT, a serving batch; projected features
SHAPES = ((1, 576, 4096), (1, 2304, 4096), (16, 576, 4096))


def cases() -> Iterator[Case]:
    for b, n, d in SHAPES:
        x = inputs.features(b, n, d)
        providers = {
            "vtkernels": partial(vt.graph_propagate, x),
            "published": partial(published.graph_propagate, x),
            "reference": partial(vt.reference.graph_propagate, x),
            "torch.mm floor": partial(torch.bmm, x, x.transpose(1, 2)),
        }
        gate = partial(_gate, x)
        yield Case("graph_propagate", {"B": b, "N": n, "D": d}, providers, gate, seconds=20 if n > 2000 or b > 1 else 6)


def _gate(x: torch.Tensor) -> None:
    torch.testing.assert_close(vt.graph_propagate(x)[0], published.graph_propagate(x), rtol=2e-4, atol=0)
