"""What the ops of PAR must return: union-find, fractions and float64 loops, straight from the definition."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from oracles import array, cosine, valid_count


def units(x: np.ndarray) -> np.ndarray:
    """Rows of unit norm; zero where a row is zero or not finite, judged by its squared float32 norm."""
    with np.errstate(all="ignore"):
        square = (x.astype(np.float32) ** 2).sum(1)
    out = np.zeros_like(x)
    for i in range(len(x)):
        if np.isfinite(square[i]) and square[i] > 0:
            out[i] = x[i] / math.sqrt(sum(v * v for v in x[i].tolist()))
    return out


def clusters(features, threshold: float, *, lengths=None) -> list[list[int]]:
    rows = []
    for b, x in enumerate(array(features)):
        n, valid = len(x), valid_count(lengths, b, len(x))
        edge = cosine(x[:valid]) >= threshold
        label = list(range(valid))
        for i in range(valid):
            for j in range(i):
                if edge[i, j] and label[i] != label[j]:
                    low, high = sorted((label[i], label[j]))
                    label = [low if c == high else c for c in label]
        rows.append(label + [-1] * (n - valid))
    return rows


def relevance(vision, text, *, text_lengths=None, reduce="max") -> np.ndarray:
    v, t = array(vision), array(text)
    out = np.zeros(v.shape[:2])
    for b in range(len(v)):
        prompt = units(t[b, : valid_count(text_lengths, b, t.shape[1])])
        if len(prompt):
            if reduce == "mean":
                prompt = units(prompt.sum(0, keepdims=True))
            out[b] = (units(v[b]) @ prompt.T).max(1)
    return out


def cluster_topk(labels: Sequence[int], scores: Sequence[float], k: int, *, pool: Fraction = Fraction(1, 2)) -> list[int]:
    """One image of N valid tokens, in the order of retrieval; -1 at the end."""
    n = len(labels)
    scores = [Fraction(r) if math.isfinite(r) else Fraction(-1) for r in scores]
    members: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        members[label].append(i)
    order = sorted(members, key=lambda c: (-sum(scores[i] for i in members[c]) / len(members[c]), c))
    wanted, retrieved, held = max(k, math.ceil(pool * n)), [], 0
    for c in order:
        if held < wanted:
            retrieved.append(c)
            held += len(members[c])
    m, budget = len(retrieved), min(k, held)
    quota = [1] * m if m <= k else [1] * k + [0] * (m - k)
    extra, spare = max(0, budget - m), [len(members[c]) - 1 for c in retrieved]
    if extra:
        exact = [Fraction(extra * s, sum(spare)) for s in spare]
        quota = [1 + math.floor(e) for e in exact]
        by_remainder = sorted(range(m), key=lambda j: (math.floor(exact[j]) - exact[j], j))
        for j in by_remainder[: budget - sum(quota)]:
            quota[j] += 1
    picks = []
    for c, q in zip(retrieved, quota, strict=True):
        picks += sorted(members[c], key=lambda i: (-scores[i], i))[:q]
    return (picks + [-1] * k)[:k]


def check_routes(got, features, indices, labels=None, *, lengths=None, tolerance=1e-6) -> None:
    """Every route goes to a kept token that no other one beats by more than rounding, and to the lowest of equal ones."""
    x, slots = array(features), indices.tolist()
    for b, row in enumerate(got.tolist()):
        n, valid = len(x[b]), valid_count(lengths, b, len(x[b]))
        u = units(x[b, :valid])
        for i, slot in enumerate(row):
            own = [s for s, j in enumerate(slots[b]) if j == i]
            mine = None if labels is None else int(labels[b, i])
            allowed = [
                s
                for s, j in enumerate(slots[b])
                if 0 <= j < valid and (labels is None or (0 <= mine < n and int(labels[b, j]) == mine))
            ]
            if i >= valid:
                assert slot == -1, (b, i)
            elif own:
                assert slot == own[0], (b, i)
            elif not allowed:
                assert slot == -1, (b, i)
            else:
                similarity = {s: float(u[i] @ u[slots[b][s]]) for s in allowed}
                assert similarity.get(slot, -2) >= max(similarity.values()) - tolerance, (b, i, slot, similarity)
                rows = {s: u[slots[b][s]] if not u[slots[b][s]].any() else x[b, slots[b][s]] for s in allowed}
                same = [s for s in allowed if np.array_equal(rows[s], rows[slot])]
                assert slot == same[0], (b, i, slot, same)


def merged(tokens, indices, assignment) -> np.ndarray:
    x, slots, to = array(tokens), indices.tolist(), assignment.tolist()
    out = np.zeros((len(x), indices.shape[1], x.shape[2]))
    for b in range(len(x)):
        for s, j in enumerate(slots[b]):
            if j >= 0:
                rows = [j] + [i for i in range(x.shape[1]) if to[b][i] == s and i not in slots[b]]
                out[b, s] = x[b][rows].sum(0) / len(rows)
    return out
