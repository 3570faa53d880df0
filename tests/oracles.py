"""What the ops must compute, in float64, straight from the mathematics, and how a greedy selection is judged.

Nothing here calls the package. A greedy op works in float32, so two candidates closer than its rounding error may change
places and everything behind them changes too. ``check_picks`` therefore walks along the op's *own* picks: where the float64
lead of the best candidate exceeds the tolerance only that candidate is right, inside the band a near-tie is accepted, and
among copies of the same candidate only the lowest index is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

# Allowed error of one summand of a gain: about four float32 roundings of a number of size one.
TOLERANCE = 2.5e-7
FLOAT32_MAX = float(np.finfo(np.float32).max)


def array(x: Tensor) -> np.ndarray:
    """Exactly the values of a tensor: float64, or int64."""
    x = x.detach().cpu().resolve_neg()
    return (x.double() if x.is_floating_point() else x.long()).numpy().copy()


def valid_count(lengths: Tensor | None, b: int, n: int) -> int:
    return n if lengths is None else min(max(int(lengths[b]), 0), n)


def ascending(row: Sequence[int]) -> list[int]:
    """Token order, -1 at the end."""
    return sorted(i for i in row if i >= 0) + [i for i in row if i < 0]


# ------------------------------------------------------------------------------------------------ greedy coverage


@dataclass
class Coverage:
    """One image: choose candidates j (columns) that cover items i (rows) of a similarity matrix."""

    similarity: np.ndarray
    weight: np.ndarray | None = None
    combine: str = "multiply"
    valid: int | None = None
    identity: np.ndarray | None = None  # rows that are equal where two candidates are copies; default: the columns

    def __post_init__(self) -> None:
        identity = self.similarity.T if self.identity is None else self.identity
        n = self.similarity.shape[1]
        c = np.where(np.isfinite(self.similarity), self.similarity, 0.0)
        if self.weight is None:
            w = np.ones(n) if self.combine == "multiply" else np.zeros(n)
        else:
            w = np.array([max(x, 0.0) if math.isfinite(x) else math.nan for x in self.weight])
        keys = [self._key(identity[j], c[:, j], w[j]) for j in range(n)]
        self.similarity, self.weight, self.copy_of = c, w, [keys.index(key) for key in keys]
        self.scale = max(1.0, float(np.abs(c).max(initial=0.0)))
        self.restart()

    def _key(self, identity: np.ndarray, column: np.ndarray, weight: float) -> tuple:
        """Equal for two candidates whose float32 scores must be equal at every step."""
        no_gain = not (column > 0).any()
        if self.combine == "multiply" and (weight == 0 or no_gain):
            return (math.isnan(weight),)
        return (b"" if no_gain else identity.tobytes(), weight.tobytes())

    def restart(self) -> None:
        m, n = self.similarity.shape
        self.alive = np.arange(n) < (n if self.valid is None else self.valid)
        self.covered = np.zeros(m)

    def scores(self) -> np.ndarray:
        gain = np.maximum(self.similarity - self.covered[:, None], 0.0).sum(0)
        return gain * self.weight if self.combine == "multiply" else gain + self.weight

    def best(self, scores: np.ndarray) -> int:
        """Greatest score, then NaN, always the lowest index; -1 where nothing is left."""
        left = [j for j in range(len(scores)) if self.alive[j]]
        numbers = [j for j in left if not math.isnan(scores[j])]
        return max(numbers, key=lambda j: (scores[j], -j)) if numbers else min(left, default=-1)

    def take(self, j: int) -> None:
        self.alive[j] = False
        self.covered = np.maximum(self.covered, self.similarity[:, j])

    def tolerance(self, p: int, best: int, tolerance: float) -> float:
        """Error bound of the difference of two scores."""
        m, w = len(self.covered), max(self.weight[p], self.weight[best])
        return tolerance * (m * self.scale * w if self.combine == "multiply" else m * self.scale + w)


def greedy(problem: Coverage, k: int) -> tuple[list[int], list[float]]:
    """k picks in the order of choice, -1 where none is left, and the winning scores."""
    problem.restart()
    picks, gains = [], []
    for _ in range(k):
        scores = problem.scores()
        j = problem.best(scores)
        picks.append(j)
        gains.append(float(scores[j]) if j >= 0 else 0.0)
        if j >= 0:
            problem.take(j)
    return picks, gains


def check_picks(
    problem: Coverage, picks: Sequence[int], gains: Sequence[float] | None = None, *, tolerance: float = TOLERANCE
) -> int:
    """Raises AssertionError unless ``picks`` (order of choice) is a right answer; returns how many near-ties it took.

    ``tolerance=0`` is for inputs whose sums are exact in float32: the answer must then be that of :func:`greedy`.
    """
    problem.restart()
    near_ties, total = 0, 0.0
    for step, p in enumerate(picks):
        where = f"step {step} took {p}"
        scores = problem.scores()
        best = problem.best(scores)
        if best < 0 or p < 0:
            assert p == best == -1, f"{where}, {'no candidate was left' if best < 0 else f'{best} was left'}"
            assert gains is None or gains[step] == 0, f"{where} with gain {gains[step]}"
            continue
        assert p < len(scores) and problem.alive[p], f"{where}, which is taken or invalid"
        if p != best:
            nan = math.isnan(scores[p])
            assert not nan, f"{where} of score NaN, right is {best} of score {scores[best]}"
            band = problem.tolerance(p, best, tolerance)
            lead = scores[best] - scores[p]
            assert lead <= band, f"{where} of score {scores[p]}, {best} leads by {lead:.3g} (allowed {band:.3g})"
            assert tolerance > 0, f"{where}, the lowest index of this tie is {best}"
            near_ties += 1
        twin = next(q for q in range(p + 1) if problem.alive[q] and problem.copy_of[q] == problem.copy_of[p])
        assert twin == p, f"{where}, a copy of {twin}"
        if gains is not None:
            allowed = problem.tolerance(p, p, tolerance) + 2**-23 * abs(scores[p])
            same = math.isnan(gains[step]) if math.isnan(scores[p]) else abs(gains[step] - scores[p]) <= allowed
            assert same, f"{where} with gain {gains[step]}, right is {scores[p]}"
        total += 0.0 if math.isnan(scores[p]) else scores[p]
        problem.take(p)
    if near_ties:  # one may lead elsewhere, but never to a much worse selection
        best_total = sum(g for g in greedy(problem, len(picks))[1] if not math.isnan(g))
        assert total >= 0.95 * best_total, f"objective {total}, the exact selection reaches {best_total}"
    return near_ties


def check_selection(
    problems: Sequence[Coverage], indices: Tensor, gains: Tensor | None = None, *, tolerance: float = TOLERANCE
) -> int:
    """:func:`check_picks` of every row."""
    assert len(problems) == len(indices)
    near_ties = 0
    for b, (problem, row) in enumerate(zip(problems, indices.tolist(), strict=True)):
        try:
            near_ties += check_picks(problem, row, None if gains is None else gains[b].tolist(), tolerance=tolerance)
        except AssertionError as error:
            raise AssertionError(f"row {b}: {error}") from None
    return near_ties


def cosine(x: np.ndarray) -> np.ndarray:
    """[N,D] -> [N,N]; a row that is zero or not finite, judged by its squared float32 norm, is similar to nothing."""
    with np.errstate(all="ignore"):
        square = (x.astype(np.float32) ** 2).sum(1)
    units = np.zeros_like(x)
    for i in range(len(x)):
        if np.isfinite(square[i]) and square[i] > 0:
            units[i] = x[i] / math.sqrt(sum(v * v for v in x[i].tolist()))
    return units @ units.T


def scope_problems(
    features, saliency, *, alpha=1.0, combine="multiply", lengths=None, fixed_order: bool = True
) -> list[Coverage]:
    """``fixed_order=False``: the matrix product may give the copies of a token different bits."""
    problems = []
    for b, x in enumerate(array(features)):
        valid = valid_count(lengths, b, len(x))
        x[valid:] = 0.0
        weight = None
        if saliency is not None:
            weight = np.array([max(a, 0.0) ** alpha if math.isfinite(a) else math.nan for a in array(saliency)[b].tolist()])
        problems.append(Coverage(cosine(x), weight, combine, valid, x if fixed_order else np.arange(len(x))))
    return problems


def coverage_problems(similarity, weight, *, combine="multiply", lengths=None) -> list[Coverage]:
    c, w = array(similarity), None if weight is None else array(weight)
    n = c.shape[2]
    return [Coverage(c[b], None if w is None else w[b], combine, valid_count(lengths, b, n)) for b in range(len(c))]


# ------------------------------------------------------------------------------------------------ similarity graph


def propagate(features, *, threshold=0.5, temperature=0.03, iterations=5, lengths=None) -> tuple[np.ndarray, np.ndarray]:
    """[B,N,D] -> float64 scores and int64 degree, both [B,N]: a row vector times a row-stochastic matrix, token by token."""
    x = array(features)
    b_count, n, _ = x.shape
    scores, degree = np.zeros((b_count, n)), np.zeros((b_count, n), dtype=np.int64)
    for b in range(b_count):
        valid = valid_count(lengths, b, n)
        similarity = cosine(x[b, :valid])
        usable = np.diag(similarity) > 0.5
        np.fill_diagonal(similarity, np.where(usable, 1.0, -1.0))
        edge = (similarity >= threshold) & usable[:, None] & usable
        p = np.zeros_like(similarity)
        for i in np.flatnonzero(usable):
            mass = np.exp((similarity[i, edge[i]] - similarity[i, edge[i]].max()) / temperature)
            p[i, edge[i]] = mass / mass.sum()
        q = np.array([math.sqrt(sum(v * v for v in x[b, i].tolist())) if usable[i] else 0.0 for i in range(valid)])
        for _ in range(iterations):
            q = q @ p
        degree[b, :valid] = edge.sum(1)
        scores[b, :valid] = np.where(usable, q / np.maximum(edge.sum(1), 1), 0.0)
    return scores, degree


def clear_threshold(features, near: float, *, lengths=None) -> float:
    """A threshold close to ``near`` (0 < near <= 1) in a gap of the similarities, so that rounding decides no edge."""
    x, found = array(features), [0.0, 1.0]
    for b in range(len(x)):
        valid = valid_count(lengths, b, x.shape[1])
        found += cosine(x[b, :valid])[np.triu_indices(valid, 1)].tolist()
    steps = np.sort([s for s in found if 0 <= s <= 1])
    middles = ((steps[1:] + steps[:-1]) / 2)[np.diff(steps) > 4e-6]
    return float(middles[abs(middles - near).argmin()])


# ------------------------------------------------------------------------------------------------ ranking


def topk(scores: Sequence[float], k: int, *, valid: int | None = None, sort: bool = True) -> list[int]:
    """Falling, NaN last, the lowest index among equals; -1 behind the valid entries."""
    n = len(scores) if valid is None else valid
    order = sorted(range(n), key=lambda j: (math.isnan(scores[j]), 0.0 if math.isnan(scores[j]) else -scores[j], j))
    row = (order + [-1] * k)[:k]
    return ascending(row) if sort else row


def row_topk(scores: Sequence[float], rows: int, width: int, *, sort: bool = True) -> list[int]:
    """All entries of the ``rows`` groups of ``width`` with the greatest sums, each group in its own order."""
    groups = [scores[i : i + width] for i in range(0, len(scores), width)]
    sums = [math.fsum(g) if all(map(math.isfinite, g)) else sum(g) for g in groups]
    return [r * width + c for r in topk(sums, rows, sort=sort) for c in range(width)]


# ------------------------------------------------------------------------------------------------ attention


def assert_close(got, want: np.ndarray, measured=None) -> None:
    """At most four times the error of a float32 torch run, and four float32 roundings of the greatest value."""
    got = array(got)
    assert got.shape == want.shape
    assert np.array_equal(np.isnan(got), np.isnan(want))
    got, want = np.nan_to_num(got, nan=0.0), np.nan_to_num(want, nan=0.0)
    error = 0.0 if measured is None else abs(np.nan_to_num(array(measured), nan=0.0) - want).max(initial=0.0)
    bound = 4 * error + 2**-21 * max(abs(want).max(initial=0.0), 1e-30)
    assert abs(got - want).max(initial=0.0) <= bound, f"{abs(got - want).max()} > {bound}"


def profile(query, key, *, scale=None, prefix=1, softmax=True, lengths=None) -> tuple[np.ndarray, np.ndarray]:
    """[B,H,T,d] twice -> float64 received and given, both [B,T-prefix], from whole maps."""
    q, k = array(query), array(key)
    b_count, heads, t, d = k.shape
    scale = 1 / math.sqrt(d) if scale is None else scale
    received, given = np.zeros((b_count, t)), np.zeros((b_count, t))
    for b in range(b_count):
        valid = valid_count(lengths, b, t)
        inside = slice(prefix, max(valid, prefix))
        maps = np.zeros((heads, valid, valid))
        for h in range(heads):
            x, y = q[b, h, :valid], k[b, h, :valid]
            if not softmax:
                maps[h] = scale * (_finite_rows(x) @ _finite_rows(y).T)
                continue
            with np.errstate(all="ignore"):
                logits = scale * (x[:, None] * y).sum(2)
            for i in range(valid):
                live = np.abs(logits[i]) <= FLOAT32_MAX  # also False for NaN
                if live.any():
                    mass = np.where(live, np.exp(np.where(live, logits[i], 0.0) - logits[i][live].max()), 0.0)
                    maps[h, i] = mass / mass.sum()
        if valid > prefix:
            received[b, inside] = maps[:, inside, inside].mean((0, 1))
            given[b, inside] = maps[:, inside, inside].mean((0, 2))
        if not softmax:
            received[b, :valid][_bad_rows(k[b, :, :valid]).any(0)] = math.nan
            given[b, :valid][_bad_rows(q[b, :, :valid]).any(0)] = math.nan
    return received[:, prefix:], given[:, prefix:]


def _bad_rows(x: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return ~np.isfinite((x.astype(np.float32) ** 2).sum(-1))


def _finite_rows(x: np.ndarray) -> np.ndarray:
    return np.where(_bad_rows(x)[..., None], 0.0, x)


def attention(query, key, *, scale=None, prefix=1, reduce="mean", lengths=None) -> np.ndarray:
    """[B,H,d], [B,H,T,d] -> float64 [B,T-prefix]."""
    q, k = array(query), array(key)
    b_count, heads, t_count, d = k.shape
    scale = 1 / math.sqrt(d) if scale is None else scale
    out = np.zeros((b_count, t_count))
    for b in range(b_count):
        valid = valid_count(lengths, b, t_count)
        for h in range(heads):
            with np.errstate(all="ignore"):
                logits = scale * (k[b, h, :valid] * q[b, h]).sum(1)
            live = np.abs(logits) <= FLOAT32_MAX  # also False for NaN
            if live.any():
                mass = np.where(live, np.exp(np.where(live, logits, 0.0) - logits[live].max()), 0.0)
                out[b, :valid] += mass / mass.sum()
    return out[:, prefix:] / (heads if reduce == "mean" else 1)
