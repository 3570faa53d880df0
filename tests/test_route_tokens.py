"""route_tokens: the kept token each token is most similar to. Properties common to all ops are in test_invariance.py."""

import math

import oracle_par
import pytest
import torch
from cases import SIZES, Draw, each_dtype, each_int, kept, ragged

import vtkernels as vt

OP = "route_tokens"
NAN, INF = math.nan, math.inf


def check(features, indices, labels=None, *, lengths=None):
    got = vt.route_tokens(features, indices, labels, lengths=lengths)
    assert got.dtype == torch.int64 and got.shape == features.shape[:2]
    oracle_par.check_routes(got, features, indices, labels, lengths=lengths)
    return got


@each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_routes_are_those_of_the_mathematics(backend, n, dtype):
    draw = Draw(n, dtype)
    features, labels = draw.normal(2, n, 9), draw.integers(0, 3, 2, n)
    for k in {0, 1, n // 2, n}:
        indices = kept(draw, 2, n, k)
        check(features, indices)
        check(features, indices, labels)
        check(features, indices.flip(1))


def test_lowest_slot_among_equal_kept_tokens(backend):
    features = torch.eye(4)[[0, 1, 0, 1, 0, 1, 2]][None] * torch.tensor([1.0, 2, 4, 8, 16, 32, 1])[:, None]
    indices = torch.tensor([[4, 3, 2, 1]])
    # tokens 0 and 5 are not kept; 6 is orthogonal to all: similarity 0 with each, the lowest slot
    assert vt.route_tokens(features, indices).tolist() == [[0, 3, 2, 1, 0, 1, 0]]


def test_a_kept_token_has_its_own_slot_where_it_duplicates_another(backend):
    features = torch.ones(1, 5, 3)
    assert vt.route_tokens(features, torch.tensor([[3, 1]])).tolist() == [[0, 1, 0, 0, 0]]
    assert vt.route_tokens(features, torch.tensor([[3, 1, 3]])).tolist() == [[0, 1, 0, 0, 0]]
    assert vt.route_tokens(features, torch.tensor([[-1, 1, 3]])).tolist() == [[1, 1, 1, 2, 1]]


def test_labels_keep_clusters_apart(backend):
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 0.05], [0.3, 1.0]]])
    indices = torch.tensor([[0, 2]])
    assert vt.route_tokens(features, indices).tolist() == [[0, 0, 1, 0, 1]]
    labels = torch.tensor([[0, 2, 2, 0, 4]])
    assert vt.route_tokens(features, indices, labels).tolist() == [[0, 1, 1, 0, -1]]


@pytest.mark.parametrize("wrong", [-1, -(2**63), 5, 2**62])
def test_label_outside_is_like_no_other(backend, wrong):
    labels = torch.tensor([[wrong, wrong, 0, 0, wrong]])
    assert vt.route_tokens(torch.ones(1, 5, 3), torch.tensor([[0, 2]]), labels).tolist() == [[0, -1, 1, 1, -1]]


@each_int
def test_tokens_behind_the_length_go_nowhere_and_attract_nothing(backend, int_dtype):
    draw = Draw()
    features, lengths = draw.normal(7, 33, 9), ragged(7, 33, int_dtype)
    indices, labels = kept(draw, 7, 33, 12), draw.integers(0, 2, 7, 33)
    clean = check(features, indices, lengths=lengths), check(features, indices, labels, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        features[b, max(length, 0) :] = NAN
    assert torch.equal(check(features, indices, lengths=lengths), clean[0])
    assert torch.equal(check(features, indices, labels, lengths=lengths), clean[1])


@each_dtype
@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
def test_row_without_a_direction_has_similarity_zero(backend, value, dtype):
    draw = Draw(2, dtype)
    features = draw.normal(2, 17, 9)
    features[0, 3], features[1, 5] = value, value
    got = check(features, torch.tensor([[2, 9, 4], [7, 5, 1]]))
    assert got[0, 3] == 0 and got[1, 5] == 1
    away = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [value, value]]])
    assert vt.route_tokens(away, torch.tensor([[1, 2]])).tolist() == [[1, 0, 1]]  # 0 is more than -1


def test_nothing_kept(backend):
    assert vt.route_tokens(torch.ones(2, 3, 4), torch.zeros(2, 0, dtype=torch.int64)).tolist() == [[-1] * 3] * 2
    assert vt.route_tokens(torch.ones(2, 3, 4), torch.full((2, 5), -1)).tolist() == [[-1] * 3] * 2
    assert vt.route_tokens(torch.ones(2, 0, 4), torch.full((2, 5), -1)).shape == (2, 0)
    assert vt.route_tokens(torch.ones(1, 3, 0), torch.tensor([[1]])).tolist() == [[0, 0, 0]]
