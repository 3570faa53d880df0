"""Class-token ranking in one call, against the map, its row and torch.topk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs, published
from .clock import Call
from .harness import Case, Results, Work, same_picks
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            if s.class_token and k % s.crops == 0:  # a tower's call ranks the patches of one crop
                b, h = s.rows * s.crops, s.heads
                sizes = {"B": b, "N": s.patches, "D": s.head_dim, "H": h, "K": k // s.crops}
                build = partial(work, b, h, s.patches + 1, s.head_dim, k // s.crops)
                yield Case("attention_topk", sizes, build, s.name)


def work(b: int, h: int, t: int, d: int, k: int) -> Work:
    query, key = inputs.query_key(b, h, t, d)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.attention_topk, query[:, :, 0], key, k),
        "full map": partial(_published, query, key, k),
        "reference": partial(vt.reference.attention_topk, query[:, :, 0], key, k),
        **floors.copy(key.nbytes + query[:, :, 0].nbytes + 4 * b * (t - 1) + 8 * b * k),
    }
    return Work(providers, _agree)


def _published(query: torch.Tensor, key: torch.Tensor, k: int) -> torch.Tensor:
    return published.cls_attention(query, key).topk(k).indices.sort(dim=1).values


def _agree(got: Results, ours: Results) -> None:
    same_picks(got[0], ours[0])
