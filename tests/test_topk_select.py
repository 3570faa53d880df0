"""topk_select: exact ranking with a tie rule. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import SIZES, Draw, dtypes_of, each_dtype, each_int, ragged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import array, topk, valid_count

import vtkernels as vt

OP = "topk_select"
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 2.0**-24)


def check(scores, k, *, lengths=None):
    n = scores.shape[1]
    for sort in (True, False):
        want = [topk(row, k, valid=valid_count(lengths, b, n), sort=sort) for b, row in enumerate(array(scores).tolist())]
        assert vt.topk_select(scores, k, lengths=lengths, sort=sort).tolist() == want


@each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_ranking_is_exact(backend, n, dtype):
    scores = Draw(n, dtype).normal(3, n)
    for k in {0, 1, n // 2, n - 1, n}:
        check(scores, k)


@each_dtype
@pytest.mark.parametrize("n", [2, 17, 151, 600])
def test_lowest_index_wins_ties(backend, n, dtype):
    scores = Draw(n).integers(-2, 3, 3, n).to(dtype)
    for k in {1, n // 3, n // 2, n}:
        check(scores, k)


@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(row=st.lists(st.sampled_from(SPECIAL), max_size=24), budget=st.integers(0, 24), length=st.integers(-2, 26))
def test_ranks_special_values(backend, row, budget, length):
    k = min(budget, len(row))
    for dtype in dtypes_of(backend):
        scores = torch.tensor([row], dtype=dtype).view(1, len(row))
        check(scores, k)
        check(scores, k, lengths=torch.tensor([length]))


@each_dtype
@pytest.mark.parametrize("value", SPECIAL)
def test_all_equal_scores_give_the_first_tokens(backend, value, dtype):
    scores = torch.full((2, 33), value, dtype=dtype)
    assert vt.topk_select(scores, 9, sort=False).tolist() == [list(range(9))] * 2


def test_both_zeros_are_equal(backend):
    assert vt.topk_select(torch.tensor([[-0.0, 0.0, -0.0, 0.0]]), 2, sort=False).tolist() == [[0, 1]]


def test_nan_of_either_sign_ranks_last_by_index(backend):
    scores = torch.tensor([[math.nan, 1.0, -math.inf, math.nan]])
    scores[0, 3] = -scores[0, 3]
    assert vt.topk_select(scores, 4, sort=False).tolist() == [[1, 2, 0, 3]]


def test_neighbours_in_float32_and_float64_are_told_apart(backend):
    ulp = torch.tensor([[1.0, 1 + 2**-23, 1 - 2**-24, 1 + 2**-23]])
    assert vt.topk_select(ulp, 4, sort=False).tolist() == [[1, 3, 0, 2]]
    if torch.float64 not in dtypes_of(backend):
        return
    ulp = torch.tensor([[1.0, 1 + 2**-52, 1 - 2**-53, 1 + 2**-52, 1e300]], dtype=torch.float64)
    assert vt.topk_select(ulp, 5, sort=False).tolist() == [[4, 1, 3, 0, 2]]


@each_dtype
def test_infinity_and_the_greatest_number_are_told_apart(backend, dtype):
    most = torch.finfo(dtype).max
    scores = torch.tensor([[-math.inf, most, -most, math.inf]], dtype=dtype)
    assert vt.topk_select(scores, 4, sort=False).tolist() == [[3, 1, 2, 0]]


def test_subnormal_scores_are_no_zeros(backend):
    for dtype in dtypes_of(backend):
        tiny = torch.finfo(dtype).smallest_normal / 4
        scores = torch.tensor([[0.0, tiny, -tiny, 2 * tiny]], dtype=dtype)
        assert vt.topk_select(scores, 4, sort=False).tolist() == [[3, 1, 0, 2]]


@pytest.mark.parametrize("order", ["rising", "falling", "two values", "saw"])
def test_large_rows_in_adverse_order(backend, order):
    n = 2880
    ramp = torch.arange(n, dtype=torch.float32)
    row = {"rising": ramp, "falling": -ramp, "two values": ramp % 2, "saw": (ramp * 7919) % 601}[order]
    for k in (1, 64, 320, n):
        check(row[None], k)


@each_int
def test_only_valid_entries_are_chosen(backend, int_dtype):
    scores = Draw().normal(7, 33)
    lengths = ragged(7, 33, int_dtype)
    for b, length in enumerate(lengths.tolist()):
        scores[b, max(length, 0) :] = math.inf
    for k in (0, 1, 20, 33):
        check(scores, k, lengths=lengths)


@each_int
def test_any_length_is_clamped(backend, int_dtype):
    limits = torch.iinfo(int_dtype)
    lengths = torch.tensor([limits.min, limits.max], dtype=int_dtype)
    check(Draw().normal(2, 9), 5, lengths=lengths)


def test_falling_order_is_a_prefix_of_the_next_budget(backend):
    scores = Draw().integers(0, 9, 3, 65).float()
    full = vt.topk_select(scores, 65, sort=False)
    for k in range(65):
        assert torch.equal(vt.topk_select(scores, k, sort=False), full[:, :k])
