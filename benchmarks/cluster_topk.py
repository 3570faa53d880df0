"""Clusters by relevance and tokens inside them, against the same in Python lists (what a first version looks like)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs
from .clock import Call
from .harness import Case, Results, Work, same_picks
from .registry import Shape


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for s in shapes:
        for k in s.keeps:
            yield Case("cluster_topk", {"B": s.rows, "N": s.tokens, "K": k}, partial(work, s.rows, s.tokens, k), s.name)


def work(b: int, n: int, k: int) -> Work:
    x = inputs.features(b, n, 64)
    labels = vt.token_clusters(x, threshold=0.8)
    relevance = vt.prompt_relevance(x, x[:, :20])
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.cluster_topk, labels, relevance, k),
        "Python lists": partial(_lists, labels, relevance, k),
        "reference": partial(vt.reference.cluster_topk, labels, relevance, k),
        **floors.copy(labels.nbytes + relevance.nbytes + 8 * b * k),
    }
    return Work(providers, _agree, host_readers=frozenset({"Python lists"}))


def _lists(labels: torch.Tensor, relevance: torch.Tensor, k: int, pool: float = 0.5) -> torch.Tensor:
    rows = []
    for names, scores in zip(labels.tolist(), relevance.tolist(), strict=True):
        members: dict[int, list[int]] = {}
        for i, name in enumerate(names):
            members.setdefault(name, []).append(i)
        held, chosen = 0, []
        for name in sorted(members, key=lambda c: (-sum(scores[i] for i in members[c]) / len(members[c]), c)):
            if held < max(k, math.ceil(pool * len(names) - 1e-6)):
                chosen.append(members[name])
                held += len(members[name])
        quota = [1] * min(len(chosen), k)
        extra, spare = k - len(quota), sum(len(m) - 1 for m in chosen)
        if extra:
            quota = [1 + extra * (len(m) - 1) // spare for m in chosen]
            most = sorted(range(len(chosen)), key=lambda j: (-(extra * (len(chosen[j]) - 1) % spare), j))
            for j in most[: k - sum(quota)]:
                quota[j] += 1
        pairs = zip(chosen, quota, strict=False)
        rows.append([i for m, q in pairs for i in sorted(m, key=lambda i: (-scores[i], i))[:q]])
    return torch.tensor(rows, device=labels.device)


def _agree(got: Results, ours: Results) -> None:
    same_picks(got[0], ours[0])
