"""compact_: kept rows moved to the front, in place. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import SIZES, Draw, arrange, assert_copied, each_dtype, kept

import vtkernels as vt

OP = "compact_"


def check(tokens, indices):
    """Against the rows of a copy; what is not written must keep its bits."""
    before = tokens.clone()
    assert vt.compact_(tokens, indices) is None
    for b, row in enumerate(indices.tolist()):
        for s in range(before.shape[1]):
            want = before[b, s]
            if s < len(row):
                want = before[b, row[s]] if row[s] >= 0 else torch.zeros_like(want)
            assert_copied(tokens[b, s], want)


@each_dtype
@pytest.mark.parametrize("d", SIZES)
def test_kept_rows_move_to_the_front(backend, d, dtype):
    draw = Draw(d, dtype)
    tokens = draw.normal(4, 17, d)
    tokens[0, 3, 0], tokens[1, 4, d - 1], tokens[2, 16] = math.nan, -math.inf, -0.0
    check(tokens, kept(draw, 4, 17, 9))


@pytest.mark.parametrize("row", [[0, 1, 2], [4, 5, 6], [0, 3, 6], [1, -1, -1], [-1, -1, -1], []], ids=str)
def test_any_order_that_ascends(backend, row):
    check(Draw().normal(1, 7, 5), torch.tensor([row], dtype=torch.int64))


def test_whole_budget_and_no_tokens(backend):
    check(Draw().normal(2, 7, 5), torch.arange(7).expand(2, 7))
    check(torch.ones(2, 0, 5), torch.zeros(2, 0, dtype=torch.int64))
    check(torch.ones(2, 5, 0), torch.tensor([[1, 3], [2, -1]]))


@pytest.mark.parametrize("layout", ["transposed", "batch_inside", "sliced", "misaligned"])
def test_writes_through_any_strides(backend, layout):
    draw = Draw()
    check(arrange(draw.normal(3, 17, 9), layout), arrange(kept(draw, 3, 17, 8), layout))


def test_writes_nothing_outside_the_view(backend):
    buffer = Draw().normal(3, 19, 11)
    before = buffer.clone()
    vt.compact_(buffer[:, 1:-1, 1:-1], torch.tensor([[3, 5]] * 3))
    before[:, 1:3, 1:-1] = before[:, [4, 6], 1:-1]
    assert torch.equal(buffer, before)


@pytest.mark.parametrize(
    "row",
    [[2, 1, 3], [1, 1, 2], [-1, 0, 1], [0, -1, 2], [3, 2, -1]],
    ids=["falls", "repeats", "-1 first", "-1 inside", "-1 last"],
)
def test_wrong_order_is_an_error_before_anything_is_written(backend, row):
    tokens = Draw().normal(2, 7, 5)
    before = tokens.clone()
    with pytest.raises(ValueError, match="indices must be ascending and distinct, with -1 only at the end"):
        vt.compact_(tokens, torch.tensor([[1, 2, 3], row]))
    assert torch.equal(tokens, before)


@pytest.mark.parametrize("row", [[0, 1, 7], [0, 1, 2**40], [-2, 0, 1], [-(2**63), 3, 4], [1, 2, -2]], ids=str)
def test_index_out_of_range_is_an_error_before_anything_is_written(backend, row):
    tokens = Draw().normal(2, 7, 5)
    before = tokens.clone()
    with pytest.raises(ValueError, match=r"indices must be -1 or in \[0, N\) with N = 7, got "):
        vt.compact_(tokens, torch.tensor([[1, 2, 3], row]))
    assert torch.equal(tokens, before)


def test_target_that_requires_grad_is_an_error(backend):
    leaf = Draw().normal(1, 4, 2).requires_grad_()
    for tokens in (leaf, leaf * 2, leaf[:, 1:]):
        before = tokens.detach().clone()
        with pytest.raises(RuntimeError, match=r"compact_: tokens is written in place and cannot require grad"):
            vt.compact_(tokens, torch.tensor([[1, 3]]) if tokens.shape[1] == 4 else torch.tensor([[1, 2]]))
        assert torch.equal(tokens, before)


def test_autograd_notices_the_write(backend):
    """A tensor that a graph saved must not change unseen."""
    tokens, weight = Draw().normal(1, 4, 2), torch.ones(1, 4, 2, requires_grad=True)
    loss, version = (tokens * weight).sum(), tokens._version
    vt.compact_(tokens[:, :], torch.tensor([[1, 3]]))  # a view shares the counter of its base
    assert tokens._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_runs_in_inference_mode(backend):
    outside = torch.arange(4.0).view(1, 4, 1)
    with torch.inference_mode():
        for tokens in (outside, torch.arange(4.0).view(1, 4, 1)):
            vt.compact_(tokens, torch.tensor([[1, 3]]))
            assert tokens.flatten().tolist() == [1, 3, 2, 3]


def test_overlapping_memory_is_refused(backend):
    """The rows of an expanded tensor are one row; there is no right answer to write."""
    tokens = torch.arange(4.0).view(1, 4, 1).expand(3, 4, 2)
    with pytest.raises(ValueError, match="expanded view"):
        vt.compact_(tokens, torch.tensor([[1, 3]] * 3))
