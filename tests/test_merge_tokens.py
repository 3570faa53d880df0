"""merge_tokens: kept tokens as means of what they absorb. Properties common to all ops are in test_invariance.py."""

import math

import oracle_par
import pytest
import torch
from cases import SIZES, Draw, bits, each_dtype, kept

import vtkernels as vt

OP = "merge_tokens"
NAN, INF = math.nan, math.inf
STEP = {torch.float32: 2**-23, torch.float64: 2**-22, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def check(tokens, indices, assignment):
    got = vt.merge_tokens(tokens, indices, assignment)
    assert got.dtype == tokens.dtype and got.is_contiguous()
    want = oracle_par.merged(tokens, indices, assignment)
    assert (abs(got.double().numpy() - want) <= STEP[tokens.dtype] * abs(want) + 1e-6).all()
    return got


@each_dtype
@pytest.mark.parametrize("d", SIZES)
def test_means_are_those_of_the_mathematics(backend, d, dtype):
    draw = Draw(d, dtype)
    tokens = draw.normal(3, 40, d)
    check(tokens, kept(draw, 3, 40, 7), draw.integers(-1, 7, 3, 40))
    check(tokens, kept(draw, 3, 40, 40), draw.integers(-1, 40, 3, 40))
    check(tokens, kept(draw, 3, 40, 1), torch.zeros(3, 40, dtype=torch.int64))


@each_dtype
def test_a_token_that_absorbs_nothing_is_copied(backend, dtype):
    tokens = Draw(0, dtype).normal(2, 17, 9)
    indices = torch.tensor([[3, 1, 16], [0, 2, -1]])
    got = vt.merge_tokens(tokens, indices, torch.full((2, 17), -1))
    assert torch.equal(bits(got), bits(vt.gather_tokens(tokens, indices)))


@each_dtype
def test_sums_are_wider_than_the_input(backend, dtype):
    tokens = torch.full((1, 3000, 2), 60.0, dtype=dtype)  # 180000 overflows float16, bfloat16 stops counting at 15360
    tokens[0, :1000, 1] = 63.0
    got = vt.merge_tokens(tokens, torch.tensor([[5]]), torch.zeros(1, 3000, dtype=torch.int64))
    assert got.tolist() == [[[60, 61]]]


def test_a_kept_token_counts_once_in_its_own_slot(backend):
    tokens = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    indices = torch.tensor([[0, 2]])
    for of_the_kept in (-1, 0, 1):
        assignment = torch.tensor([[of_the_kept, 1, of_the_kept, 0]])
        assert vt.merge_tokens(tokens, indices, assignment).tolist() == [[[4.5], [3.0]]]


def test_repeats_and_empty_slots(backend):
    tokens = torch.tensor([[[1.0], [2.0], [4.0], [8.0]]])
    indices = torch.tensor([[2, -1, 2, 0]])
    # the token 1 goes to an empty slot, 3 to the second of the two slots of token 2
    assert vt.merge_tokens(tokens, indices, torch.tensor([[0, 1, 0, 2]])).tolist() == [[[4.0], [0.0], [6.0], [1.0]]]


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_bad_token_spoils_its_own_slot_alone(backend, value):
    tokens = Draw().normal(1, 6, 3)
    tokens[0, 3] = value
    clean = tokens.nan_to_num(0, 0, 0)
    indices, assignment = torch.tensor([[0, 5, -1]]), torch.tensor([[-1, 0, 1, 1, 0, -1]])
    got = vt.merge_tokens(tokens, indices, assignment)
    assert not got[0, 1].isfinite().any()
    assert torch.equal(got[0, [0, 2]], vt.merge_tokens(clean, indices, assignment)[0, [0, 2]])
    assignment[0, 3] = -1
    assert torch.equal(vt.merge_tokens(tokens, indices, assignment), vt.merge_tokens(clean, indices, assignment))
    assignment[0, 3] = 2
    assert torch.equal(bits(vt.merge_tokens(tokens, indices, assignment)[0, 2]), bits(torch.zeros(3)))


def test_no_tokens_no_slots_no_channels(backend):
    none = torch.zeros(2, 0, dtype=torch.int64)
    assert torch.equal(vt.merge_tokens(torch.ones(2, 0, 4), torch.full((2, 3), -1), none), torch.zeros(2, 3, 4))
    assert vt.merge_tokens(torch.ones(2, 3, 4), none, torch.full((2, 3), -1)).shape == (2, 0, 4)
    assert vt.merge_tokens(torch.ones(2, 3, 0), torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 3).long()).shape == (
        2,
        1,
        0,
    )


def test_merging_what_was_routed_keeps_the_mean_of_an_image(backend):
    """Everything routed, nothing dropped: the merged tokens weighted by their counts have the sum of all."""
    features = Draw().normal(2, 60, 16)
    indices = vt.topk_select(torch.rand(2, 60), 10)
    routed = vt.route_tokens(features, indices)
    counts = torch.zeros(2, 10).scatter_add(1, routed, torch.ones(2, 60))
    merged = vt.merge_tokens(features, indices, routed)
    torch.testing.assert_close((merged * counts.unsqueeze(2)).sum(1), features.sum(1), atol=1e-4, rtol=1e-4)


def test_gradient_is_that_of_finite_differences(backend):
    tokens = Draw(0, torch.float64).normal(2, 6, 3).requires_grad_()
    indices = torch.tensor([[4, 1, 1, -1], [0, -1, 2, 3]])
    assignment = torch.tensor([[0, 0, 3, 2, 1, -1], [1, 0, -1, 0, 3, 2]])
    assert torch.autograd.gradcheck(vt.merge_tokens, (tokens, indices, assignment))
    assert torch.autograd.gradgradcheck(vt.merge_tokens, (tokens, indices, assignment))


@each_dtype
def test_gradient_of_a_mean_is_shared(backend, dtype):
    tokens = torch.zeros(1, 5, 2, dtype=dtype, requires_grad=True)
    got = vt.merge_tokens(tokens, torch.tensor([[1, -1, 4]]), torch.tensor([[0, 2, 1, 0, 0]]))
    assert got.requires_grad and got.dtype == dtype
    got.backward(torch.tensor([[[3.0, 6.0], [NAN, INF], [1.0, 2.0]]], dtype=dtype))
    assert tokens.grad.dtype == dtype
    assert tokens.grad.tolist() == [[[1, 2], [1, 2], [0, 0], [1, 2], [1, 2]]]


def test_gradient_without_tokens_or_slots(backend):
    none = torch.zeros(2, 0, dtype=torch.int64)
    for tokens, indices, assignment in (
        (torch.ones(2, 0, 3), torch.full((2, 4), -1), none),
        (torch.ones(2, 3, 3), none, torch.full((2, 3), -1)),
    ):
        tokens.requires_grad_()
        vt.merge_tokens(tokens, indices, assignment).sum().backward()
        assert torch.equal(tokens.grad, torch.zeros_like(tokens))
