"""gather_tokens: rows by index, differentiable. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import SIZES, Draw, assert_copied, bits, each_dtype

import vtkernels as vt

OP = "gather_tokens"
NAN, INF = math.nan, math.inf


def expected(tokens, indices):
    out = tokens.new_zeros(indices.shape[0], indices.shape[1], tokens.shape[2])
    for b, row in enumerate(indices.tolist()):
        for slot, i in enumerate(row):
            if i >= 0:
                out[b, slot] = tokens[b, i]
    return out


@each_dtype
@pytest.mark.parametrize("d", SIZES)
def test_rows_are_copied_bit_for_bit(backend, d, dtype):
    draw = Draw(d, dtype)
    tokens = draw.normal(3, 17, d)
    tokens[0, 3, 0], tokens[1, 4, d - 1], tokens[2, 5, d // 2] = NAN, -INF, -0.0
    indices = draw.integers(-1, 17, 3, 33)  # any order, repeats, more than there are
    got = vt.gather_tokens(tokens, indices)
    assert got.is_contiguous()
    assert_copied(got, expected(tokens, indices))


@each_dtype
@pytest.mark.parametrize("value", [NAN, INF, -1.0])
def test_missing_rows_are_positive_zeros(backend, value, dtype):
    tokens = torch.full((2, 3, 5), value, dtype=dtype)
    got = vt.gather_tokens(tokens, torch.tensor([[-1, 0], [2, -1]]))
    assert not bits(got[0, 0]).any() and not bits(got[1, 1]).any()
    assert_copied(got[0, 1], tokens[0, 0])


def test_no_tokens_no_slots_no_channels(backend):
    assert torch.equal(vt.gather_tokens(torch.ones(2, 0, 4), torch.full((2, 3), -1)), torch.zeros(2, 3, 4))
    assert vt.gather_tokens(torch.ones(2, 3, 4), torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 4)
    assert vt.gather_tokens(torch.ones(2, 3, 0), torch.zeros(2, 5, dtype=torch.int64)).shape == (2, 5, 0)


@pytest.mark.parametrize(("n", "d"), [(5, 4), (5, 0), (0, 4)])
@pytest.mark.parametrize("index", [5, -2, 2**40, -(2**63)])
def test_index_out_of_range_is_an_error(backend, index, n, d):
    indices = torch.full((2, 3), -1)
    indices[1, 2] = index
    with pytest.raises(ValueError, match=rf"indices must be -1 or in \[0, N\) with N = {n}, got {index}$"):
        vt.gather_tokens(torch.ones(2, n, d), indices)


def test_first_token_of_none_is_an_error(backend):
    with pytest.raises(ValueError, match=r"with N = 0, got 0$"):
        vt.gather_tokens(torch.ones(2, 0, 4), torch.zeros(2, 3, dtype=torch.int64))


def test_gradient_is_that_of_finite_differences(backend):
    tokens = Draw(0, torch.float64).normal(2, 5, 3).requires_grad_()
    indices = torch.tensor([[4, 1, 1, -1], [0, -1, 2, 3]])
    assert torch.autograd.gradcheck(vt.gather_tokens, (tokens, indices))
    assert torch.autograd.gradgradcheck(vt.gather_tokens, (tokens, indices))


@each_dtype
def test_gradients_of_repeats_accumulate(backend, dtype):
    tokens = torch.zeros(1, 4, 2, dtype=dtype, requires_grad=True)
    got = vt.gather_tokens(tokens, torch.tensor([[2, 2, 0, 2, -1]]))
    assert got.requires_grad and got.dtype == dtype
    grad = torch.tensor([[[1.0, 2], [4, 8], [16, 32], [64, 128], [NAN, INF]]], dtype=dtype)
    got.backward(grad)
    assert tokens.grad.dtype == dtype
    assert tokens.grad.tolist() == [[[16, 32], [0, 0], [69, 138], [0, 0]]]


def test_gradient_through_views_and_sums(backend):
    """The incoming gradient of a sum is expanded (stride 0), the tokens are a transposed view of a leaf."""
    leaf = Draw().normal(2, 3, 6).requires_grad_()
    vt.gather_tokens(leaf.mT, torch.tensor([[5, 0], [5, 5]])).sum().backward()
    want = torch.zeros(2, 3, 6)
    want[0, :, [0, 5]] = 1
    want[1, :, 5] = 2
    assert torch.equal(leaf.grad, want)


def test_gradient_of_an_image_without_tokens(backend):
    tokens = torch.ones(2, 0, 3, requires_grad=True)
    vt.gather_tokens(tokens, torch.full((2, 4), -1)).sum().backward()
    assert tokens.grad.shape == (2, 0, 3)


def test_no_graph_where_none_is_wanted(backend):
    tokens = torch.ones(1, 3, 2, requires_grad=True)
    indices = torch.tensor([[1]])
    with torch.no_grad():
        assert not vt.gather_tokens(tokens, indices).requires_grad
    assert not vt.gather_tokens(tokens.detach(), indices).requires_grad
    with torch.inference_mode():
        assert vt.gather_tokens(tokens, indices).tolist() == [[[1, 1]]]
