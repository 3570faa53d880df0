"""Whether the native answer is the reference's, or one that rounding makes as good.

Most answers are equal. Where they are not, float64 decides: a choice between scores closer than their rounding error may fall
either way, and so may an edge whose similarity is the threshold. What is so close to the ends of the float32 range that the
order of a sum decides whether it overflows is not compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import oracle_holov
import oracle_par
import oracles
import torch
from cases import assert_copied
from torch import Tensor

from vtkernels import reference

# The squared float32 norm of a row is far from overflow and from underflow, or the row is zero to any order of summation.
LEAST, MOST = 1e-34, 1e37
NO_SQUARE = 2.0**-76  # its square, and that of anything smaller, is 0 in float32


def assert_agrees(op: str, arguments: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    if arguments.get("sort"):  # what sorting changes is an invariant
        return
    with torch.no_grad():
        want = getattr(reference, op)(**arguments)
    AGREE.get(op, _equal)(arguments, results, want if isinstance(want, tuple) else (want,))


def _equal(a: dict[str, Any], got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    for x, y in zip(got, want, strict=True):
        assert_copied(x, y)


def _same(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def _rows(x: Tensor) -> np.ndarray:
    """float64, as many leading dimensions as there are."""
    return x.detach().double().resolve_neg().numpy()


def _in_range(x: Tensor) -> np.ndarray:
    """Without the last dimension: rows whose norm any order of summation judges alike."""
    rows = _rows(x)
    with np.errstate(all="ignore"):
        square = (rows * rows).sum(-1)
        nothing = (np.abs(rows) < NO_SQUARE).all(-1)
    return nothing | ~np.isfinite(rows).all(-1) | ((square > LEAST) & (square < MOST)) | (square > 1e40)


def _valid(a: dict[str, Any], b: int, n: int, name: str = "lengths") -> int:
    return oracles.valid_count(a.get(name), b, n)


# ------------------------------------------------------------------------------------------------ greedy


def _scope_select(a, got, want) -> None:
    if _same(got, want) or not _in_range(a["features"]).all() or not _tame(a["saliency"], a["alpha"]):
        return
    options = {name: a[name] for name in ("alpha", "combine", "lengths")}
    if a["features"].shape[1] <= 64:
        oracles.check_selection(oracles.scope_problems(a["features"], a["saliency"], **options), got[0])


def _coverage_select(a, got, want) -> None:
    if _same(got, want) or not _tame(a["similarity"]) or not _tame(a["weight"]):
        return
    options = {name: a[name] for name in ("combine", "lengths")}
    if a["similarity"].shape[2] <= 64:
        oracles.check_selection(oracles.coverage_problems(a["similarity"], a["weight"], **options), *got)


def _tame(x: Tensor | None, power: float = 1.0) -> bool:
    """No finite entry is so large that sums and products of them overflow, nor so small that they vanish."""
    if x is None:
        return True
    sizes = np.abs(_rows(x))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not sizes.size:
        return True
    ends = np.log10([sizes.min(), sizes.max()]) * max(power, 1.0)
    return bool(ends[0] > -15 and ends[1] < 15)


# ------------------------------------------------------------------------------------------------ similarity


def _cosine(a: dict[str, Any], b: int, name: str = "features") -> np.ndarray:
    x = oracles.array(a[name])[b]
    return oracles.cosine(x[: _valid(a, b, len(x))])


def _clear_edges(a: dict[str, Any], b: int) -> bool:
    """Rounding decides no edge. Zero is exact: unusable rows, and rows that share no channel."""
    similarity = _cosine(a, b)
    near = np.abs(similarity - a["threshold"]) < 4e-6
    return not (np.triu(near, 1) & ((similarity != 0) | (a["threshold"] < 1e-30))).any() and _in_range(a["features"])[b].all()


def _graph_propagate(a, got, want) -> None:
    for b in range(len(got[0])):
        if not _clear_edges(a, b):
            continue
        assert torch.equal(got[1][b], want[1][b]), f"row {b}: degree {got[1][b].tolist()}, right is {want[1][b].tolist()}"
        if a["temperature"] >= 0.01:
            torch.testing.assert_close(
                got[0][b], want[0][b], rtol=2e-4, atol=1e-5 * want[0][b].amax().item() + 1e-37 if want[0].shape[1] else 0
            )


def _token_clusters(a, got, want) -> None:
    for b in range(len(got[0])):
        if not torch.equal(got[0][b], want[0][b]):
            assert not _clear_edges(a, b), f"row {b}: {got[0][b].tolist()}, right is {want[0][b].tolist()}"


def _prompt_relevance(a, got, want) -> None:
    near, text = _in_range(a["vision"]), oracles.array(a["text"])
    for b in range(len(near)):
        prompt = text[b, : _valid(a, b, text.shape[1], "text_lengths")]
        if not _in_range(torch.from_numpy(prompt)).all():
            continue
        if a["reduce"] == "mean":
            total = oracle_par.units(prompt).sum(0)
            if (total**2).sum() < 1e-3 * len(prompt):  # directions that cancel
                continue
        clear = torch.from_numpy(near[b])
        torch.testing.assert_close(got[0][b][clear], want[0][b][clear], rtol=1e-5, atol=1e-5)


def _route_tokens(a, got, want) -> None:
    if not _same(got, want) and _in_range(a["features"]).all():
        oracle_par.check_routes(got[0], a["features"], a["indices"], a["labels"], lengths=a["lengths"])


# ------------------------------------------------------------------------------------------------ attention


def _attention(a, got, want) -> None:
    """The error of a logit is some roundings of the sum of its absolute products, that of the softmax as much in relation."""
    q, k = oracles.array(a["query"]), oracles.array(a["key"])
    q = q if q.ndim == 4 else q[:, :, None]
    scale = k.shape[3] ** -0.5 if a["scale"] is None else abs(a["scale"])
    for b in range(len(q)):
        with np.errstate(all="ignore"):
            sizes = [np.abs(np.where(np.isfinite(x[b]), x[b], 0)) for x in (q, k)]
            product = np.einsum("hqd,hkd->hqk", *sizes)
            size = scale * product
        if max(scale, *(x.max(initial=0) for x in (*sizes, product, size))) > 1e30:
            continue
        error = 2e-6 * float(size.max(initial=0)) + 2e-6
        if not a.get("softmax", True):
            error *= q.shape[2] * k.shape[2]
        if error < 0.1 or not a.get("softmax", True):
            for x, y in zip(got, want, strict=True):
                torch.testing.assert_close(x[b], y[b], rtol=error, atol=error, equal_nan=True)


def _attention_topk(a, got, want) -> None:
    _attention(a, got[1:], want[1:])
    t, prefix = a["key"].shape[2], a["prefix"]
    for b, row in enumerate(got[0].tolist()):
        valid = max(_valid(a, b, t) - prefix, 0)
        assert row == oracles.topk(got[1][b].tolist(), len(row), valid=valid, sort=False)


# ------------------------------------------------------------------------------------------------ ranking


def _row_topk(a, got, want) -> None:
    if _same(got, want):
        return
    scores, width = oracles.array(a["scores"]), a["width"]
    for b, row in enumerate(scores):
        with np.errstate(all="ignore"):
            sums, sizes = (x.reshape(-1, width).sum(1) for x in (row, np.abs(row)))
        chosen = [i // width for i in got[0][b].tolist()[::width]]
        left = set(range(len(sums)))
        for r in chosen:
            left.discard(r)
            for other in left:  # within float64 rounding either is right
                if np.isfinite([sums[r], sums[other]]).all():
                    assert sums[r] >= sums[other] - 1e-14 * (sizes[r] + sizes[other]) * width
                else:
                    assert not np.isfinite(sizes[r] * sizes[other]) or sums[r] >= sums[other]


def _crop_topk(a, got, want) -> None:
    if _same(got, want) or not _tame(a["attention"]) or a["beta"] > 1e6:
        return
    if a["features"] is not None and not _in_range(a["features"]).all():
        return
    options = {name: a[name] for name in ("beta", "variant", "lengths")}
    crops = min(a["crops"], a["attention"].shape[1])
    answers = oracle_holov.answers(a["attention"], a["features"], a["k"], crops=crops, **options)
    for b, answer in enumerate(answers):
        assert not answer.strict or got[0][b].tolist() == answer.picks, f"row {b}: {got[0][b].tolist()} not {answer.picks}"


def _merge_tokens(a, got, want) -> None:
    tolerance = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-6, torch.float64: 1e-14}[got[0].dtype]
    largest = a["tokens"].detach().abs().double().nan_to_num(0, 0, 0).amax().item() if a["tokens"].numel() else 0.0
    if largest > 1e305:  # its sums are float64
        return
    torch.testing.assert_close(got[0], want[0], rtol=tolerance, atol=tolerance * largest, equal_nan=True)


AGREE: dict[str, Callable[..., None]] = {
    "scope_select": _scope_select,
    "coverage_select": _coverage_select,
    "graph_propagate": _graph_propagate,
    "token_clusters": _token_clusters,
    "prompt_relevance": _prompt_relevance,
    "route_tokens": _route_tokens,
    "cls_attention": _attention,
    "attention_profile": _attention,
    "attention_topk": _attention_topk,
    "row_topk": _row_topk,
    "crop_topk": _crop_topk,
    "merge_tokens": _merge_tokens,
}
