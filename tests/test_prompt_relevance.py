"""prompt_relevance: cosine of visual tokens with a prompt. Properties common to all ops are in test_invariance.py."""

import math

import oracle_par
import pytest
import torch
from cases import SIZES, Draw, each_dtype, each_int, ragged
from oracles import assert_close

import vtkernels as vt

OP = "prompt_relevance"
NAN, INF = math.nan, math.inf
each_reduce = pytest.mark.parametrize("reduce", ["max", "mean"])


def check(vision, text, **options):
    got = vt.prompt_relevance(vision, text, **options)
    assert got.dtype == torch.float32 and got.is_contiguous()
    want = oracle_par.relevance(vision, text, **options)
    assert abs(got.double().numpy() - want).max(initial=0.0) <= 2e-6
    return got


@each_dtype
@each_reduce
@pytest.mark.parametrize("n", SIZES)
def test_cosines_are_those_of_the_mathematics(backend, n, reduce, dtype):
    draw = Draw(n, dtype)
    for d in (1, 9, 65):
        check(draw.normal(2, n, d), draw.normal(2, 7, d), reduce=reduce)


@each_reduce
@pytest.mark.parametrize("t", [1, 2, 15, 64, 151])
def test_any_number_of_prompt_vectors(backend, t, reduce):
    draw = Draw(t)
    check(draw.normal(2, 33, 24), draw.normal(2, t, 24), reduce=reduce)


@each_reduce
def test_length_of_vectors_does_not_matter(backend, reduce):
    draw = Draw()
    vision, text = draw.normal(2, 17, 8), draw.normal(2, 5, 8)
    scaled = check(vision * draw.uniform(2, 17, 1).add(0.1) * 1e4, text * draw.uniform(2, 5, 1).add(0.1) * 1e-4, reduce=reduce)
    assert_close(scaled, check(vision, text, reduce=reduce).double().numpy())


@each_dtype
def test_max_is_over_vectors_and_mean_is_of_directions(backend, dtype):
    vision = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]], dtype=dtype)
    text = torch.tensor([[[100.0, 0.0], [0.0, 0.5]]], dtype=dtype)
    half = math.sqrt(0.5)
    for reduce, want in (("max", [1, 1, half, 0]), ("mean", [half, half, 1, -half])):
        got = vt.prompt_relevance(vision, text, reduce=reduce)
        torch.testing.assert_close(got, torch.tensor([want]), atol=1e-6, rtol=0)


@each_int
@each_reduce
def test_vectors_behind_the_length_do_not_count(backend, reduce, int_dtype):
    draw = Draw()
    vision, text, lengths = draw.normal(7, 17, 8), draw.normal(7, 6, 8), ragged(7, 6, int_dtype)
    clean = check(vision, text, text_lengths=lengths, reduce=reduce)
    assert (clean[[2, 4]] == 0).all() and (clean[[0, 1, 3, 5, 6]] != 0).all()
    for b, length in enumerate(lengths.tolist()):
        text[b, max(length, 0) :] = NAN
    assert torch.equal(check(vision, text, text_lengths=lengths, reduce=reduce), clean)


@each_int
@each_reduce
def test_length_beyond_the_ends_is_the_end(backend, reduce, int_dtype):
    draw, limits = Draw(), torch.iinfo(int_dtype)
    vision, text = draw.normal(4, 17, 8), draw.normal(4, 6, 8)
    far = torch.tensor([limits.min, -1, 7, limits.max], dtype=int_dtype)
    got = check(vision, text, text_lengths=far, reduce=reduce)
    assert (got[:2] == 0).all()
    assert torch.equal(got[2:], vt.prompt_relevance(vision, text, reduce=reduce)[2:])


@each_reduce
def test_no_prompt_vector_is_no_relevance(backend, reduce):
    assert torch.equal(vt.prompt_relevance(torch.ones(2, 3, 4), torch.ones(2, 0, 4), reduce=reduce), torch.zeros(2, 3))
    assert torch.equal(vt.prompt_relevance(torch.ones(2, 3, 0), torch.ones(2, 5, 0), reduce=reduce), torch.zeros(2, 3))
    assert vt.prompt_relevance(torch.ones(2, 0, 4), torch.ones(2, 5, 4), reduce=reduce).shape == (2, 0)


@each_dtype
@each_reduce
@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
def test_row_without_a_direction_is_similar_to_nothing(backend, value, reduce, dtype):
    draw = Draw(1, dtype)
    vision, text = draw.normal(2, 17, 8), draw.normal(2, 5, 8)
    vision[0, 3], vision[0, 4, 2] = value, value
    text[1, 2] = value
    got = check(vision, text, reduce=reduce)
    assert got[0, 3] == 0 and (value == 0 or got[0, 4] == 0)


def test_zero_prompt_vector_counts_as_similarity_zero_in_the_maximum(backend):
    vision, text = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]])
    assert vt.prompt_relevance(vision, text).tolist() == [[0]]
    assert vt.prompt_relevance(vision, text, reduce="mean").tolist() == [[-1]]


def test_prompt_that_cancels_has_no_direction(backend):
    text = torch.tensor([[[3.0, 0.0], [-2.0, 0.0]]])
    assert vt.prompt_relevance(torch.ones(1, 4, 2), text, reduce="mean").tolist() == [[0] * 4]
