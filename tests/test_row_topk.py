"""row_topk: whole image rows. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import DTYPES, Draw, each_dtype
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import array, row_topk

import vtkernels as vt

OP = "row_topk"
SPECIAL = (math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 2.0**-24)


def check(scores, rows, width):
    for sort in (True, False):
        want = [row_topk(row, rows, width, sort=sort) for row in array(scores).tolist()]
        assert vt.row_topk(scores, rows, width=width, sort=sort).tolist() == want


@each_dtype
@pytest.mark.parametrize(("n", "width"), [(1, 1), (6, 2), (6, 3), (17, 17), (33, 11), (63, 1), (151, 1), (576, 24), (728, 26)])
def test_rows_are_those_of_the_greatest_sums(backend, n, width, dtype):
    scores = Draw(n, dtype).normal(3, n)
    for rows in {0, 1, n // width // 2, n // width}:
        check(scores, rows, width)


@each_dtype
@pytest.mark.parametrize("width", [1, 2, 5, 24])
def test_lowest_row_wins_ties(backend, width, dtype):
    scores = Draw(width).integers(-1, 2, 3, 24 * width).to(dtype)
    for rows in (1, 7, 12, 24):
        check(scores, rows, width)
    flat = torch.full((2, 24 * width), 0.1, dtype=dtype)
    assert vt.row_topk(flat, 5, width=width, sort=False).tolist() == [list(range(5 * width))] * 2


@settings(derandomize=True, max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(st.sampled_from(SPECIAL), max_size=24), width=st.integers(1, 4), budget=st.integers(0, 24))
def test_ranks_special_values(backend, cells, width, budget):
    cells = cells[: len(cells) // width * width]
    for dtype in DTYPES:
        check(torch.tensor([cells], dtype=dtype).view(1, len(cells)), min(budget, len(cells) // width), width)


def test_a_row_without_a_sum_ranks_last(backend):
    scores = torch.tensor([[math.nan, 9.0, -math.inf, 0.0, math.inf, -math.inf, -1.0, -1.0, math.inf, 0.0]])
    assert vt.row_topk(scores, 5, width=2, sort=False).tolist() == [[8, 9, 6, 7, 2, 3, 0, 1, 4, 5]]


def test_sums_are_wider_than_float32(backend):
    """What float32 would round away still decides, and float32 would overflow."""
    scores = torch.tensor([[1.0, 0.0, 1.0, 2.0**-30]])
    assert vt.row_topk(scores, 1, width=2).tolist() == [[2, 3]]
    scores = torch.tensor([[2e38, 2e38, 3e38, 3e38, 1.0, 1.0]])
    assert vt.row_topk(scores, 3, width=2, sort=False).tolist() == [[2, 3, 0, 1, 4, 5]]


def test_equal_sums_are_equal_in_any_order(backend):
    """The sum of a few float32 values of one size is exact in float64: a row and its reverse tie."""
    row = Draw(0).uniform(24) + 1
    scores = torch.stack([row.roll(i) if i % 2 else row.flip(0).roll(i) for i in range(24)]).reshape(1, -1)
    assert vt.row_topk(scores, 24, width=24, sort=False).tolist() == [list(range(576))]


def test_falling_order_is_a_prefix_of_the_next_budget(backend):
    scores = Draw(0).normal(3, 96)
    full = vt.row_topk(scores, 24, width=4, sort=False)
    for rows in range(25):
        assert torch.equal(vt.row_topk(scores, rows, width=4, sort=False), full[:, : 4 * rows])


def test_no_rows(backend):
    assert vt.row_topk(torch.zeros(2, 6), 0, width=3).shape == (2, 0)
    assert vt.row_topk(torch.zeros(2, 0), 0, width=3).shape == (2, 0)
