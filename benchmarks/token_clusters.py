"""Connected components over a threshold, against the Gram product that they need."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs
from .harness import Case

THRESHOLD = 0.7
SHAPES = ((1, 576, 1024), (1, 2880, 1024), (16, 576, 1024))


def cases() -> Iterator[Case]:
    for b, n, d in SHAPES:
        x = inputs.features(b, n, d)
        providers = {
            "vtkernels": partial(vt.token_clusters, x, threshold=THRESHOLD),
            "torch.mm floor": partial(torch.bmm, x, x.transpose(1, 2)),
            "reference": partial(vt.reference.token_clusters, x, threshold=THRESHOLD),
        }
        yield Case("token_clusters", {"B": b, "N": n, "D": d}, providers, partial(_gate, x), seconds=4 if n < 2000 else 12)


def _gate(x: torch.Tensor) -> None:
    """Every token has the smallest label among its neighbours, and the label's token has its own."""
    labels = vt.token_clusters(x, threshold=THRESHOLD)
    unit = torch.nn.functional.normalize(x, dim=-1)
    edge = unit @ unit.transpose(1, 2) >= THRESHOLD
    seen = labels.unsqueeze(1).where(edge, x.shape[1])
    torch.testing.assert_close(seen.amin(2).minimum(labels), labels)
    torch.testing.assert_close(labels.gather(1, labels), labels)
    if not (labels == vt.reference.token_clusters(x, threshold=THRESHOLD)).all():
        raise AssertionError("labels differ from the reference: no timing on a red gate")
