"""The whole selection against the published loop, against its own reference, and against one torch.mm of the Gram matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import vtkernels as vt

from . import floors, inputs, published
from .clock import Call
from .harness import Case, Results, Work, same_picks
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            sizes = {"B": s.rows, "N": s.tokens, "D": s.tower, "K": k}
            yield Case("scope_select", sizes, partial(work, s.rows, s.tokens, s.tower, k), s.name)


def work(b: int, n: int, d: int, k: int) -> Work:
    x, a = inputs.features(b, n, d), inputs.saliency(b, n)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.scope_select, x, a, k),
        "published": partial(published.scope, x, a, k),
        "reference": partial(vt.reference.scope_select, x, a, k),
        **floors.gram(x),
    }
    return Work(providers, agree)


def agree(got: Results, ours: Results) -> None:
    same_picks(got[0], ours[0], allowed=0.02)
