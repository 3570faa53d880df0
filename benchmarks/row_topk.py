"""Whole image rows, against their sums, torch.topk and the indices spelled out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import vtkernels as vt

from . import floors, inputs, published
from .clock import Call
from .harness import Case, Results, Work, same_picks
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    """A quarter of the image rows of every crop."""
    for s in shapes:
        b, rows = s.rows * s.crops, s.patches // s.grid // 4
        sizes = {"B": b, "N": s.patches, "K": rows * s.grid}
        yield Case("row_topk", sizes, partial(work, b, s.patches, s.grid, rows), s.name)


def work(b: int, n: int, width: int, rows: int) -> Work:
    scores = inputs.saliency(b, n)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.row_topk, scores, rows, width=width),
        "published": partial(published.row_topk, scores, rows, width),
        "reference": partial(vt.reference.row_topk, scores, rows, width=width),
        **floors.copy(scores.nbytes + 8 * b * rows * width),
    }
    return Work(providers, _agree)


def _agree(got: Results, ours: Results) -> None:
    same_picks(got[0], ours[0])
