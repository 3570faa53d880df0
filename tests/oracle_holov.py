"""What ``crop_topk`` must return, run by run in float64, and whether float32 can decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
from oracles import array, topk, valid_count

EPS = 1e-6
# Distances below which float32 may decide otherwise: of w * k to an integer, and relative ones of weights and ranks.
NEAR_INTEGER, NEAR = 1e-4, 2e-6


@dataclass
class Answer:
    picks: list[int]  # published order, -1 at the end
    quota: list[int]  # of every run that has tokens, after redistribution
    strict: bool


def crop_topk(a: np.ndarray, x: np.ndarray | None, k: int, *, crops=16, beta=0.09, variant="released") -> Answer:
    """One image: attention [N] and features [N, D] or None."""
    n = len(a)
    sizes = [size for c in range(crops) if (size := n // crops + (c < n % crops))]
    starts = np.cumsum([0, *sizes])[:-1].tolist()
    mass = np.where(np.isfinite(a), np.maximum(np.nan_to_num(a), 0.0), 0.0)
    rank = np.where(np.isfinite(a), mass, np.nan)
    strict = True

    scores = []
    for start, m in zip(starts, sizes, strict=True):
        inside = slice(start, start + m)
        mean = mass[inside].mean()
        spread = None if x is None else variances(x[inside])
        if variant == "paper":
            rank[inside] += mean / (spread.mean() + EPS) * spread
            scores.append(mean)
        elif m == 1:
            scores.append(mean)
        else:
            ratio = 1.0 if spread is None else spread.mean() / (spread.mean() + EPS)
            scores.append(1000 * mean * (1 + beta * ratio))
    total = sum(scores) + (0.0 if variant == "paper" else EPS)
    weight = [s / total if total else 0.0 for s in scores]

    quota = [math.floor(w * k) for w in weight]
    # of a single run the remainder gives back what the floor took
    strict &= len(sizes) == 1 or all(_clear(w * k) for w in weight)
    falling = sorted(range(len(sizes)), key=lambda c: (-weight[c], c))
    more = min(k - sum(quota), len(sizes))
    if 0 < more < len(sizes):
        last, behind = weight[falling[more - 1]], weight[falling[more]]
        strict &= last == behind == 0 or last - behind > NEAR * last
    for c in falling[:more]:
        quota[c] += 1
    if variant != "released":
        quota, clear = redistribute(quota, weight, sizes, falling, k)
        strict &= clear

    picks: list[int] = []
    for start, m, q in zip(starts, sizes, quota, strict=True):
        inside = rank[start : start + m].tolist()
        order = topk(inside, m, sort=False)
        strict &= q >= m or all(
            inside[i] - inside[j] > NEAR * abs(inside[i]) or (inside[i] == inside[j] and variant != "paper")
            for i, j in pairwise(order[: q + 1])
            if not math.isnan(inside[j])
        )
        picks += [start + i for i in (range(m) if q >= m else order[:q])]
    return Answer((picks + [-1] * k)[:k], quota, strict)


def _clear(share: float | Fraction) -> bool:
    """Rounding cannot change its floor: a share is never below 0."""
    return round(share) == 0 or abs(share - round(share)) > NEAR_INTEGER


def variances(x: np.ndarray) -> np.ndarray:
    """[M, D] -> [M]: of the similarities of each token to its run, its own zero included, over M - 1."""
    m = len(x)
    if m == 1:
        return np.zeros(1)
    with np.errstate(all="ignore"):
        square = (x.astype(np.float32) ** 2).sum(1)
    usable = np.isfinite(square) & (square > 0)
    units = np.zeros_like(x)
    units[usable] = x[usable] / (np.linalg.norm(x[usable], axis=1, keepdims=True) + EPS)
    similarity = units @ units.T
    np.fill_diagonal(similarity, 0.0)
    mean = similarity.sum(1, keepdims=True) / (m - 1)
    return ((similarity - mean) ** 2).sum(1) / (m - 1)


def redistribute(
    quota: Sequence[int], weight: Sequence[float], sizes: Sequence[int], falling: Sequence[int], k: int
) -> tuple[list[int], bool]:
    """In exact fractions; False where the weights' own rounding might decide."""
    quota, clear = [min(q, m) for q, m in zip(quota, sizes, strict=True)], True
    while (left := k - sum(quota)) > 0 and any(room := [m - q for q, m in zip(quota, sizes, strict=True)]):
        pull = [Fraction(w) * h for w, h in zip(weight, room, strict=True)]
        weighted = any(pull)
        pull = pull if weighted else [Fraction(h) for h in room]
        shares = [left * p / sum(pull) for p in pull]
        clear &= not weighted or all(map(_clear, shares))
        give = [min(h, math.floor(s)) for h, s in zip(room, shares, strict=True)]
        if not any(give):
            having = [c for c in falling if room[c]]
            if 0 < left < len(having):
                last, behind = weight[having[left - 1]], weight[having[left]]
                clear &= last == behind == 0 or last - behind > NEAR * last
            give = [int(c in having[:left]) for c in range(len(sizes))]
        quota = [q + g for q, g in zip(quota, give, strict=True)]
    return quota, clear


def answers(attention, features, k, *, lengths=None, **options) -> list[Answer]:
    """Every image of a batch."""
    a, x = array(attention), None if features is None else array(features)
    n = a.shape[1]
    return [
        crop_topk(a[b, :valid], None if x is None else x[b, :valid], k, **options)
        for b in range(len(a))
        for valid in [valid_count(lengths, b, n)]
    ]
