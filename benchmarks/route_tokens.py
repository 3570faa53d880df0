"""The most similar kept token of each token, against normalising, one product and an argmax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs
from .clock import Call
from .harness import Case, Results, Work
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            sizes = {"B": s.rows, "N": s.tokens, "D": s.tower, "K": k}
            yield Case("route_tokens", sizes, partial(work, s.rows, s.tokens, s.tower, k), s.name)


def work(b: int, n: int, d: int, k: int) -> Work:
    x, indices = inputs.features(b, n, d), vt.topk_select(inputs.saliency(b, n), k)
    labels = vt.token_clusters(x, threshold=0.7)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.route_tokens, x, indices, labels),
        "torch operators": partial(_operators, x, indices, labels),
        "reference": partial(vt.reference.route_tokens, x, indices, labels),
        **floors.product(x, vt.gather_tokens(x, indices).transpose(1, 2)),
    }
    return Work(providers, _agree)


def _operators(x: torch.Tensor, indices: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    x = torch.nn.functional.normalize(x, dim=-1)
    similarity = x @ x.gather(1, indices.unsqueeze(2).expand(-1, -1, x.shape[2])).transpose(1, 2)
    foreign = labels.unsqueeze(2) != labels.gather(1, indices).unsqueeze(1)
    best = similarity.masked_fill(foreign, -torch.inf).max(2)
    slots = best.indices.masked_fill(best.values.isinf(), -1)
    return slots.scatter(1, indices, torch.arange(indices.shape[1], device=x.device).expand_as(indices))


def _agree(got: Results, ours: Results) -> None:
    different = (got[0] != ours[0]).float().mean().item()
    if different > 1e-3:
        raise AssertionError(f"{different:.1%} of the routes differ")
