"""The greedy loop alone, on a similarity that is already there; without weights also against libraries of facility location."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from torch.nn.functional import normalize

import vtkernels as vt

from . import floors, inputs, peers, published
from .clock import Call
from .harness import Case, Work
from .registry import Shape
from .scope_select import agree


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            sizes = {"B": s.rows, "N": s.tokens, "K": k}
            yield Case("coverage_select", sizes, partial(work, s.rows, s.tokens, k), s.name)
    for s in shapes:
        sizes = {"B": s.rows, "N": s.tokens, "K": s.keeps[0]}
        if s.rows == 1:
            yield Case("coverage_select(unweighted)", sizes, partial(facility_location, s.tokens, s.keeps[0]), s.name)


def work(b: int, n: int, k: int) -> Work:
    x = normalize(inputs.features(b, n, 256), dim=-1)
    similarity, weight = x @ x.transpose(1, 2), inputs.saliency(b, n)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.coverage_select, similarity, weight, k),
        "published": partial(published.greedy_coverage, similarity, weight, k),
        "reference": partial(vt.reference.coverage_select, similarity, weight, k),
        **floors.copy(similarity.nbytes + weight.nbytes + 12 * b * k),
    }
    return Work(providers, agree)


def facility_location(n: int, k: int) -> Work:
    """No entry is negative: libraries of facility location assume it."""
    x = normalize(inputs.features(1, n, 256), dim=-1)
    similarity = (x @ x.transpose(1, 2)).clamp_min(0)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.coverage_select, similarity, None, k),
        "reference": partial(vt.reference.coverage_select, similarity, None, k),
        **peers.facility_location(similarity, k),
        **floors.copy(similarity.nbytes + 12 * k),
    }
    return Work(providers, agree)
