"""Connected components over a threshold, against the Gram product that they need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

import vtkernels as vt

from . import floors, inputs
from .clock import Call
from .harness import Case, Results, Work
from .registry import Shape

THRESHOLD = 0.7


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        sizes = {"B": s.rows, "N": s.tokens, "D": s.tower}
        yield Case("token_clusters", sizes, partial(work, s.rows, s.tokens, s.tower), s.name)


def work(b: int, n: int, d: int) -> Work:
    x = inputs.features(b, n, d)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.token_clusters, x, threshold=THRESHOLD),
        "label propagation": partial(_propagate, x),
        "reference": partial(vt.reference.token_clusters, x, threshold=THRESHOLD),
        **floors.gram(x),
    }
    return Work(providers, _agree, host_readers=frozenset({"label propagation"}))


def _propagate(x: Tensor) -> Tensor:
    """The smallest label among the neighbours until nothing changes: the plain way, with a host read per round."""
    unit = torch.nn.functional.normalize(x, dim=-1)
    edge = unit @ unit.transpose(1, 2) >= THRESHOLD
    labels = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
    while True:
        smallest = torch.where(edge, labels.unsqueeze(1), x.shape[1]).amin(2)
        if torch.equal(smallest, labels):
            return labels
        labels = smallest


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours)
