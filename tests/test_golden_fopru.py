"""FoPru keeps what the published code keeps, from queries and keys instead of attention maps."""

import pytest
import torch
from cases import on_ops
from golden import FOPRU_CASES, fopru_case

import vtkernels as vt
from vtkernels.methods import Context, FoPru

GAP = 1e-6  # closer to each other than this (relative), rounding decides which token is kept


def method_and_context(case):
    n = case.received.shape[1]
    # the published map has its own scale; the method takes the model's, d ** -0.5
    query = case.query * (case.scale * case.query.shape[3] ** 0.5)
    source = "softmax" if case.softmax else "logits"
    context = Context(len(query), n, torch.device("cpu"), case.grid, queries=query, key=case.key, prefix=1)
    return FoPru(case.strategy, source), context


def heads_of(name):
    return fopru_case(name).query.shape[1]


def test_cases_are_there():
    assert len(FOPRU_CASES) == 15


@on_ops("attention_profile")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.large if heads_of(name) > 8 else ()) for name in FOPRU_CASES]
)
def test_published_profiles(op, backend, name):
    case = fopru_case(name)
    received, given = vt.attention_profile(case.query, case.key, scale=case.scale, softmax=case.softmax)
    for got, want in ((received, case.received), (given, case.given)):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("backend", ["auto", "reference"], indirect=True)
@pytest.mark.parametrize("name", FOPRU_CASES)
def test_published_tokens(backend, name):
    case = fopru_case(name)
    method, context = method_and_context(case)
    selection = method.select(context, case.k)
    torch.testing.assert_close(selection.scores.double(), case.significance, rtol=1e-5, atol=1e-7)
    for b, (got, want) in enumerate(zip(selection.indices, case.kept, strict=True)):
        if case.strict[b]:
            assert got.equal(want)
            continue
        assert len(got) == len(want)
        significance = case.significance[b]
        last = significance[want].min()
        for token in set(got.tolist()) ^ set(want.tolist()):
            assert abs(significance[token] / last - 1) <= GAP, f"image {b}, token {token}"


def test_both_profiles_win_somewhere():
    won = {(case.softmax, bool(case.significance.equal(case.received))) for case in map(fopru_case, FOPRU_CASES)}
    assert won == {(True, True), (True, False), (False, True), (False, False)}
