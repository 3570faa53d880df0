"""What holds of every result of an op, whatever its input: ranges, order, budgets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import assert_same, run
from torch import Tensor

from vtkernels._schemas import SCHEMAS


def assert_invariants(op: str, arguments: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    for result in results:
        assert not result.requires_grad or op in ("gather_tokens", "merge_tokens")
    if op in CHOICE:
        _choice(op, arguments, results)
    if op in SCORES:
        SCORES[op](arguments, *results)


def _valid(arguments: dict[str, Any], n: int, name: str = "lengths") -> Tensor:
    """[B], the lengths clamped to [0, n]."""
    first = next(x for x in arguments.values() if isinstance(x, Tensor))
    lengths = arguments.get(name)
    return torch.full((first.shape[0],), n) if lengths is None else lengths.long().clamp(0, n)


# ------------------------------------------------------------------------------------------------ choices

# ops that choose tokens: how many can be chosen in each row, and whether all of them must be
CHOICE: dict[str, Callable[[dict[str, Any]], tuple[Tensor, int, bool]]] = {
    "scope_select": lambda a: (_valid(a, a["features"].shape[1]), a["k"], True),
    "coverage_select": lambda a: (_valid(a, a["similarity"].shape[2]), a["k"], True),
    "topk_select": lambda a: (_valid(a, a["scores"].shape[1]), a["k"], True),
    "attention_topk": lambda a: ((_valid(a, a["key"].shape[2]) - a["prefix"]).clamp_min(0), a["k"], True),
    "row_topk": lambda a: (_valid(a, a["scores"].shape[1]), a["rows"] * a["width"], True),
    "crop_topk": lambda a: (_valid(a, a["attention"].shape[1]), a["k"], a["variant"] != "released"),
    "cluster_topk": lambda a: (_valid(a, a["labels"].shape[1]), a["k"], False),
}


def _choice(op: str, arguments: dict[str, Any], results: tuple[Tensor, ...]) -> None:
    valid, budget, full = CHOICE[op](arguments)
    indices = results[0]
    chosen = indices >= 0
    count = chosen.sum(1)
    assert ((indices >= -1) & (indices < valid.unsqueeze(1))).all(), "an index outside [-1, valid)"
    assert torch.equal(chosen, torch.arange(budget) < count.unsqueeze(1)), "-1 before the end"
    assert not full or torch.equal(count, valid.clamp_max(budget)), "slots left empty though tokens were left"
    ordered = indices.masked_fill(~chosen, torch.iinfo(torch.int64).max).sort(dim=1)
    repeated = (ordered.values[:, 1:] == ordered.values[:, :-1]) & chosen[:, 1:]
    assert not repeated.any(), "a token was chosen twice"
    if arguments["sort"]:
        assert torch.equal(indices.masked_fill(~chosen, torch.iinfo(torch.int64).max), ordered.values), "not ascending"
        unsorted = run(op, {**arguments, "sort": False})
        others = unsorted[1:] if op == "attention_topk" else (x.gather(1, _ascending(unsorted[0])) for x in unsorted[1:])
        assert_same(results, (unsorted[0].gather(1, _ascending(unsorted[0])), *others))


def _ascending(indices: Tensor) -> Tensor:
    return indices.masked_fill(indices < 0, torch.iinfo(torch.int64).max).sort(dim=1, stable=True).indices


# ------------------------------------------------------------------------------------------------ scores and labels


def _coverage_select(a: dict[str, Any], indices: Tensor, gains: Tensor) -> None:
    assert ((gains >= 0) | gains.isnan()).all()
    assert (gains[indices < 0] == 0).all()


def _graph_propagate(a: dict[str, Any], scores: Tensor, degree: Tensor) -> None:
    n = scores.shape[1]
    valid = _valid(a, n).unsqueeze(1)
    inside = torch.arange(n) < valid
    assert ((degree >= 0) & (degree <= valid)).all()
    assert (scores >= 0).all() and scores.isfinite().all()
    assert (degree[~inside] == 0).all() and (scores[degree == 0] == 0).all()


def _cls_attention(a: dict[str, Any], scores: Tensor) -> None:
    heads, t = a["key"].shape[1:3]
    most = heads if a.get("reduce") == "sum" else 1
    assert (scores >= 0).all() and (scores.sum(1) <= most * (1 + 1e-5)).all()
    behind = torch.arange(a["prefix"], t) >= _valid(a, t).unsqueeze(1)
    assert (scores[behind] == 0).all()


def _attention_profile(a: dict[str, Any], received: Tensor, given: Tensor) -> None:
    t = a["key"].shape[2]
    behind = torch.arange(a["prefix"], t) >= _valid(a, t).unsqueeze(1)
    for x in (received, given):
        assert (x[behind] == 0).all()
        assert not a["softmax"] or ((x >= 0) & (x <= 1 + 1e-5)).all()


def _token_clusters(a: dict[str, Any], labels: Tensor) -> None:
    n = labels.shape[1]
    inside = torch.arange(n) < _valid(a, n).unsqueeze(1)
    token = torch.arange(n).expand_as(labels)
    assert (labels[~inside] == -1).all()
    assert ((labels >= 0) & (labels <= token))[inside].all()
    smallest = labels.gather(1, labels.clamp_min(0)) if n else labels
    assert torch.equal(smallest[inside], labels[inside]), "a label is not the smallest token of its cluster"


def _prompt_relevance(a: dict[str, Any], relevance: Tensor) -> None:
    assert (relevance.abs() <= 1 + 1e-5).all()
    assert (relevance[_valid(a, a["text"].shape[1], "text_lengths") == 0] == 0).all()


def _route_tokens(a: dict[str, Any], slots: Tensor) -> None:
    n, k = slots.shape[1], a["indices"].shape[1]
    valid = _valid(a, n).unsqueeze(1)
    inside = torch.arange(n) < valid
    assert ((slots >= -1) & (slots < k)).all()
    assert (slots[~inside] == -1).all()
    if k and n:
        to = a["indices"].gather(1, slots.clamp_min(0))
        assert (((to >= 0) & (to < valid)) | (slots < 0)).all(), "routed to an empty slot"
        own = (a["indices"].unsqueeze(1) == torch.arange(n).unsqueeze(1)).any(2) & inside
        assert (to == torch.arange(n))[own].all(), "a kept token left its own slot"


SCORES: dict[str, Callable[..., None]] = {
    "coverage_select": _coverage_select,
    "graph_propagate": _graph_propagate,
    "cls_attention": _cls_attention,
    "attention_topk": lambda a, indices, scores: _cls_attention(a, scores),
    "attention_profile": _attention_profile,
    "token_clusters": _token_clusters,
    "prompt_relevance": _prompt_relevance,
    "route_tokens": _route_tokens,
}
assert set(CHOICE) | set(SCORES) | {"gather_tokens", "merge_tokens", "compact_"} == set(SCHEMAS)
