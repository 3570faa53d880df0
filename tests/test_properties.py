"""What must hold of every op for any size, dtype, seed and layout, as hypothesis draws them.

``VTKERNELS_HYPOTHESIS=fuzz`` draws many more examples, and others each time. Where a property needs scores that differ, they
differ by construction: exact sums plus distinct fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import (
    EXAMPLES,
    LAYOUTS,
    Draw,
    arrange,
    assert_copied,
    assert_same,
    backends_of,
    dtypes_of,
    example,
    kept,
    replace,
    rows_of,
    run,
    similar,
    takes_lengths,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import vtkernels as vt
from vtkernels._ops import ops
from vtkernels._schemas import OUT

FUNCTIONAL = [op for op in EXAMPLES if op != "compact_"]
each_layout = st.sampled_from([layout for layout in LAYOUTS if layout not in ("expanded", "requires_grad")])
seeds = st.integers(0, 2**20)


def on(*names: str) -> pytest.MarkDecorator:
    """Parametrises ``op`` and ``backend``: the library and the definition; interpreters are too slow for so many calls."""
    pairs = [(op, backend) for op in names for backend in backends_of(op) if backend in ("native", "reference")]
    return pytest.mark.parametrize(("op", "backend"), pairs, indirect=["backend"])


@st.composite
def sizes(draw) -> dict[str, Any]:
    """Of an example: batch, tokens, budget, seed, dtype, and whether rows are ragged."""
    n = draw(st.integers(1, 40))
    return {
        "batch": draw(st.integers(1, 4)),
        "n": n,
        "k": draw(st.integers(0, n)),
        "seed": draw(seeds),
        "dtype": draw(st.sampled_from(dtypes_of("native"))),
        "lengths": draw(st.booleans()),
    }


# ------------------------------------------------------------------------------------------------ rows, memory, dtypes


@on(*EXAMPLES)
@given(size=sizes(), order=st.randoms(use_true_random=False))
def test_row_depends_on_its_own_values_alone(op, backend, size, order):
    """Shuffling a batch and repeating rows of it does the same to the result."""
    rows = [order.randrange(size["batch"]) for _ in range(5)]
    whole = run(op, example(op, **size))
    assert_same(run(op, rows_of(example(op, **size), rows)), tuple(x[rows] for x in whole), backend)


@on(*FUNCTIONAL)
@given(size=sizes(), layouts=st.lists(each_layout, min_size=4, max_size=4))
def test_layout_of_each_tensor_is_its_own_affair(op, backend, size, layouts):
    arguments, choice = example(op, **size), iter(layouts)
    mixed = replace(arguments, lambda x: arrange(x, next(choice)))
    assert_same(run(op, mixed), run(op, arguments), backend)


@on(*OUT)
@given(size=sizes(), layout=each_layout)
def test_out_is_the_functional_result(op, backend, size, layout):
    (want,) = run(op, example(op, **size))
    out = arrange(torch.full_like(want, 77), layout)
    getattr(ops, op).out(**example(op, **size), out=out)
    assert_same((out,), (want,))


@on(*EXAMPLES)
@given(size=sizes())
def test_half_precision_is_the_same_numbers_in_float32(op, backend, size):
    dtype = torch.bfloat16 if size["seed"] % 2 else torch.float16
    half = example(op, **{**size, "dtype": dtype})
    wide = replace(half, lambda x: x.float() if x.is_floating_point() else x.clone())
    for got, want in zip(run(op, half), run(op, wide), strict=True):
        assert got.dtype == (dtype if op in ("gather_tokens", "merge_tokens", "compact_") else want.dtype)
        assert_copied(got, want.to(got.dtype))


@on(*EXAMPLES)
@given(size=sizes())
def test_shape_function_tells_shape_dtype_and_strides(op, backend, size):
    real = run(op, example(op, **size))
    with FakeTensorMode() as mode:
        fake = run(op, replace(example(op, **size), mode.from_tensor))
    described = [[(x.shape, x.dtype, x.stride(), x.device) for x in results] for results in (real, fake)]
    assert described[0] == described[1]
    floats = {torch.float32} if op not in ("gather_tokens", "merge_tokens", "compact_") else {size["dtype"]}
    assert {x.dtype for x in real} <= floats | {torch.int64, torch.int32}


# ------------------------------------------------------------------------------------------------ lengths


def cut(op: str, arguments: dict[str, Any], length: int) -> dict[str, Any]:
    """The arguments of a single image without the tokens behind its length."""
    dims = {"key": 2, "similarity": 2}
    dims |= {"query": 2} if op == "attention_profile" else {}
    tokens = ("features", "saliency", "weight", "scores", "attention", "labels", "relevance", "key", "similarity", "query")
    cut_off = {
        name: x.narrow(dims.get(name, 1), 0, length)
        for name, x in arguments.items()
        if name in tokens and isinstance(x, Tensor) and (name != "query" or "query" in dims)
    }
    return {**arguments, **cut_off, "lengths": None}


@on(*(op for op in EXAMPLES if takes_lengths(op)))
@given(size=sizes(), at=st.floats(0, 1))
def test_length_is_as_if_the_row_ended_there(op, backend, size, at):
    arguments = example(op, **{**size, "batch": 1, "lengths": False})
    prefix = 1 if "key" in arguments else 0
    length = prefix + round(at * size["n"])
    if "labels" in arguments:  # names in [0, N) of both
        arguments["labels"] %= max(length, 1)
    if "k" in arguments:
        arguments["k"] = min(arguments["k"], length - prefix)
    if "indices" in arguments:
        arguments["indices"].masked_fill_(arguments["indices"] >= length, -1)
    whole = run(op, {**arguments, "lengths": torch.tensor([length])})
    alone = run(op, cut(op, arguments, length))
    assert_same(tuple(x[:, : y.shape[1]] for x, y in zip(whole, alone, strict=True)), alone, backend)
    behind = -1 if op in ("token_clusters", "route_tokens") else 0
    assert all((x[:, y.shape[1] :] == behind).all() for x, y in zip(whole, alone, strict=True))


@on("prompt_relevance")
@given(size=sizes(), length=st.integers(0, 6), reduce=st.sampled_from(["max", "mean"]))
def test_text_length_is_as_if_the_prompt_ended_there(op, backend, size, length, reduce):
    arguments = {**example(op, **{**size, "lengths": False}), "reduce": reduce}
    whole = run(op, {**arguments, "text_lengths": torch.full((size["batch"],), length)})
    assert_same(whole, run(op, {**arguments, "text": arguments["text"][:, :length]}), backend)


# ------------------------------------------------------------------------------------------------ budgets


@on("scope_select", "coverage_select", "topk_select", "attention_topk", "row_topk")
@given(size=sizes())
def test_order_of_choice_begins_with_the_answer_for_any_smaller_budget(op, backend, size):
    """So what is kept of k tokens is kept of more."""
    arguments = {**example(op, **size), "sort": False}
    budget, step = ("rows", arguments["width"]) if op == "row_topk" else ("k", 1)
    longest = run(op, arguments)[0]
    for k in range(arguments[budget] + 1):
        assert torch.equal(run(op, {**arguments, budget: k})[0], longest[:, : k * step])


@on("scope_select", "coverage_select", "topk_select", "attention_topk", "row_topk", "crop_topk", "cluster_topk")
@given(size=sizes())
def test_sorted_is_the_same_choice_in_token_order(op, backend, size):
    first = run(op, {**example(op, **size), "sort": False})[0]
    last = torch.iinfo(torch.int64).max
    ordered = first.masked_fill(first < 0, last).sort(dim=1).values
    assert torch.equal(run(op, {**example(op, **size), "sort": True})[0], ordered.masked_fill(ordered == last, -1))


# ------------------------------------------------------------------------------------------------ renumbering

# Arguments of one image of n tokens whose scores all differ, and what to move with the tokens: tensor and dimension.
Distinct = Callable[[Draw, int], tuple[dict[str, Any], dict[str, int]]]


def fractions(draw: Draw, n: int) -> Tensor:
    """[1, n], distinct and below 1, so that they tell apart sums of integers that are equal."""
    return (1 + torch.randperm(n, generator=draw.generator))[None] / 64


def one_hot(draw: Draw, n: int) -> Tensor:
    """[1, n, 5], cosines of 0 or 1."""
    return torch.nn.functional.one_hot(draw.integers(0, 5, 1, n), 5) * 2.0 ** draw.integers(-3, 4, 1, n, 1)


DISTINCT: dict[str, Distinct] = {
    "scope_select": lambda g, n: (
        {"features": one_hot(g, n), "saliency": fractions(g, n), "k": n, "combine": "add", "sort": False},
        {"features": 1, "saliency": 1},
    ),
    "coverage_select": lambda g, n: (
        {
            "similarity": g.integers(-2, 9, 1, 7, n).float(),
            "weight": fractions(g, n),
            "k": n,
            "combine": "add",
            "sort": False,
        },
        {"similarity": 2, "weight": 1},
    ),
    "topk_select": lambda g, n: ({"scores": fractions(g, n), "k": n, "sort": False}, {"scores": 1}),
    "attention_topk": lambda g, n: (
        {"query": torch.ones(1, 1, 1), "key": fractions(g, n)[:, None, :, None], "k": n, "prefix": 0, "sort": False},
        {"key": 2},
    ),
    "cluster_topk": lambda g, n: (
        {"labels": g.integers(0, 4, 1, n) % n, "relevance": fractions(g, n), "k": (n + 1) // 2, "sort": False},
        {"labels": 1, "relevance": 1},
    ),
}


@on(*DISTINCT)
@given(n=st.integers(1, 40), seed=seeds)
def test_renumbering_the_tokens_renumbers_the_choice(op, backend, n, seed):
    draw = Draw(seed)
    arguments, moved = DISTINCT[op](draw, n)
    order = torch.randperm(n, generator=draw.generator)
    other = {**arguments, **{name: arguments[name].index_select(dim, order) for name, dim in moved.items()}}
    picks = run(op, other)[0]
    assert torch.equal(torch.where(picks < 0, -1, order[picks]), run(op, arguments)[0])


@on("token_clusters")
@given(n=st.integers(1, 40), seed=seeds)
def test_renumbering_the_tokens_renumbers_the_clusters(op, backend, n, seed):
    """Cosines of 0 or 1: no threshold is close."""
    draw = Draw(seed)
    features, order = one_hot(draw, n), torch.randperm(n, generator=draw.generator)
    labels, moved = (vt.token_clusters(x, threshold=0.5)[0] for x in (features, features[:, order]))
    assert torch.equal(moved[:, None] == moved, labels[order][:, None] == labels[order])


@on("prompt_relevance", "graph_propagate")
@given(n=st.integers(1, 40), seed=seeds)
def test_renumbering_the_tokens_renumbers_the_scores(op, backend, n, seed):
    draw = Draw(seed)
    tokens, text = similar(draw, 1, n, 9), draw.normal(1, 4, 9)
    order = torch.randperm(n, generator=draw.generator)
    options = {"text": text} if op == "prompt_relevance" else {"threshold": 1e-6}
    name = "vision" if op == "prompt_relevance" else "features"
    scores, moved = (run(op, {name: x, **options})[0] for x in (tokens, tokens[:, order]))
    torch.testing.assert_close(moved, scores[:, order], rtol=1e-4, atol=1e-6)


@on("gather_tokens", "merge_tokens")
@given(size=sizes())
def test_renumbering_the_slots_renumbers_the_rows(op, backend, size):
    draw = Draw(size["seed"], size["dtype"])
    n, k = size["n"], size["k"]
    arguments = {"tokens": draw.normal(2, n, 9), "indices": kept(draw, 2, n, k)}
    order = torch.randperm(k, generator=draw.generator)
    other = {**arguments, "indices": arguments["indices"][:, order]}
    if op == "merge_tokens":
        arguments["assignment"] = draw.integers(-1, k, 2, n)
        place = torch.cat([order.argsort(), torch.tensor([-1])])
        other["assignment"] = place[arguments["assignment"]]
    assert_same(run(op, other), tuple(x[:, order] for x in run(op, arguments)), backend)


# ------------------------------------------------------------------------------------------------ the greedy guarantee


def objective(similarity: Tensor, weight: Tensor, chosen: tuple[int, ...]) -> float:
    """What greedy steps add up to: the coverage of the items, and the weights of the chosen."""
    return (similarity[:, chosen].amax(1).clamp_min(0).sum() + weight[list(chosen)].sum()).item() if chosen else 0.0


def assert_near_best(picks: Tensor, similarity: Tensor, weight: Tensor) -> None:
    n, k = similarity.shape[1], len(picks)
    best = max(objective(similarity, weight, chosen) for chosen in itertools.combinations(range(n), k))
    assert objective(similarity, weight, tuple(picks.tolist())) >= (1 - 1 / math.e) * best - 1e-5


@on("coverage_select", "scope_select")
@given(n=st.integers(1, 8), at=st.floats(0, 1), seed=seeds, weighted=st.booleans())
def test_greedy_reaches_its_share_of_the_best_choice(op, backend, n, at, seed, weighted):
    """1 - 1/e, which holds where a step maximises the growth of one monotone submodular function. Without weights that is the
    coverage; with ``"add"`` the coverage plus the weights, none negative. A growth multiplied by weights that differ is the
    growth of no function of the set, so nothing is promised for it.
    """
    draw, k = Draw(seed), round(at * min(n, 4))
    weight = 2 * draw.uniform(1, n) if weighted else None
    if op == "scope_select":
        features = draw.normal(1, n, 3)
        picks = vt.scope_select(features, weight, k, combine="add")
        unit = torch.nn.functional.normalize(features.double(), dim=2)[0]
        similarity = unit @ unit.T
    else:
        x = draw.normal(1, 6, n)
        picks, _ = vt.coverage_select(x, weight, k, combine="add" if weighted else "multiply")
        similarity = x.double()[0]
    assert_near_best(picks[0], similarity, torch.zeros(n).double() if weight is None else weight.double()[0])
