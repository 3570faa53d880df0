"""The most similar kept token of each token, against normalising, one product and an argmax."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs
from .harness import Case

SHAPES = ((1, 576, 1024, 64), (1, 2880, 1024, 320), (16, 576, 1024, 64))


def cases() -> Iterator[Case]:
    for b, n, d, k in SHAPES:
        x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
        labels = vt.token_clusters(x, threshold=0.7)
        providers = {
            "vtkernels": partial(vt.route_tokens, x, indices, labels),
            "vtkernels without labels": partial(vt.route_tokens, x, indices),
            "torch operators": partial(_operators, x, indices, labels),
            "reference": partial(vt.reference.route_tokens, x, indices, labels),
        }
        yield Case("route_tokens", {"B": b, "N": n, "D": d, "K": k}, providers, partial(_gate, x, indices, labels), seconds=4)


def _operators(x: torch.Tensor, indices: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    x = torch.nn.functional.normalize(x, dim=-1)
    similarity = x @ x.gather(1, indices.unsqueeze(2).expand(-1, -1, x.shape[2])).transpose(1, 2)
    foreign = labels.unsqueeze(2) != labels.gather(1, indices).unsqueeze(1)
    best = similarity.masked_fill(foreign, -torch.inf).max(2)
    slots = best.indices.masked_fill(best.values.isinf(), -1)
    return slots.scatter(1, indices, torch.arange(indices.shape[1]).expand_as(indices))


def _gate(x: torch.Tensor, indices: torch.Tensor, labels: torch.Tensor) -> None:
    different = (vt.route_tokens(x, indices, labels) != _operators(x, indices, labels)).float().mean().item()
    if different > 1e-3:
        raise AssertionError(f"{different:.1%} of the routes differ: no timing on a red gate")
