"""HoloV's selection, against the published loop over runs (470 operator calls and its host reads)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import vtkernels as vt

from . import floors, inputs, published
from .clock import Call
from .harness import Case, Results, Work, same_picks
from .registry import Shape

_RUNS = {64: 16, 192: 5}  # the settings of the released code


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for variant in ("released", "full"):
        name = "crop_topk" if variant == "released" else "crop_topk(full)"
        for s in shapes:
            for k in s.keeps:
                sizes = {"B": s.rows, "N": s.tokens, "D": s.tower, "K": k}
                build = partial(work, s.rows, s.tokens, s.tower, k, crops=_RUNS.get(k, 16), variant=variant)
                yield Case(name, sizes, build, s.name)


def work(b: int, n: int, d: int, k: int, *, crops: int = 16, variant: str = "released") -> Work:
    x, a = inputs.features(b, n, d), inputs.saliency(b, n)
    how: dict[str, Any] = {"crops": crops, "variant": variant}
    loop = {"published": partial(published.holov, x, a, k, crops=crops)} if variant == "released" else {}
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.crop_topk, a, x, k, **how),
        **loop,  # it has no code that keeps exactly k
        "reference": partial(vt.reference.crop_topk, a, x, k, **how),
        **floors.gram(x[:, : n // crops * crops].reshape(b * crops, n // crops, d)),  # variances need every similarity in a run
    }
    return Work(providers, _agree, host_readers=frozenset(loop))


def _agree(got: Results, ours: Results) -> None:
    same_picks(got[0], ours[0])
