"""cluster_topk: clusters by relevance, then tokens inside them. Properties common to all ops are in test_invariance.py."""

import math
from fractions import Fraction

import oracle_par
import pytest
import torch
from cases import SIZES, Draw, each_dtype, each_int, ragged
from oracles import ascending, valid_count

import vtkernels as vt

OP = "cluster_topk"
NAN, INF = math.nan, math.inf


def inputs(n, clusters, *, batch=3, seed=0, dtype=torch.float32):
    """Relevance in eighths: ties of tokens and of means everywhere."""
    draw = Draw(seed)
    return draw.integers(0, clusters, batch, n), draw.integers(-8, 9, batch, n).to(dtype) / 8


def check(labels, relevance, k, *, pool=0.5, lengths=None):
    picks = vt.cluster_topk(labels, relevance, k, pool=pool, lengths=lengths, sort=False)
    exact = Fraction(pool).limit_denominator(1000)
    want = [
        oracle_par.cluster_topk(labels[b, :valid].tolist(), relevance[b, :valid].tolist(), k, pool=exact)
        for b in range(len(labels))
        for valid in [valid_count(lengths, b, labels.shape[1])]
    ]
    assert picks.tolist() == want
    ordered = vt.cluster_topk(labels, relevance, k, pool=pool, lengths=lengths)
    assert ordered.tolist() == [ascending(row) for row in want]
    return picks


@each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_picks_are_those_of_the_definition(backend, n, dtype):
    for clusters in {1, min(3, n), max(n // 3, 1), n}:
        labels, relevance = inputs(n, clusters, seed=n, dtype=dtype)
        for k in {0, 1, n // 2, n}:
            for pool in (0.0, 0.1, 0.5, 1.0):
                check(labels, relevance, k, pool=pool)


def test_by_hand():
    """Means 0.8, 0.5, 0.15: nine tokens hold five (half of nine, rounded up) in the first two clusters."""
    labels = torch.tensor([[0, 0, 0, 0, 4, 4, 6, 6, 6]])
    relevance = torch.tensor([[0.1, 0.2, 0.1, 0.2, 0.7, 0.9, 0.4, 0.5, 0.6]])
    assert vt.cluster_topk(labels, relevance, 1, sort=False).tolist() == [[5]]
    assert vt.cluster_topk(labels, relevance, 2, sort=False).tolist() == [[5, 8]]
    assert vt.cluster_topk(labels, relevance, 3, sort=False).tolist() == [[5, 8, 7]]  # the bigger cluster has the bigger share
    assert vt.cluster_topk(labels, relevance, 5, sort=False).tolist() == [[5, 4, 8, 7, 6]]
    assert vt.cluster_topk(labels, relevance, 6, sort=False).tolist() == [[5, 4, 8, 7, 1, 3]]
    assert vt.cluster_topk(labels, relevance, 3, pool=0.1, sort=False).tolist() == [[5, 8, 7]]


@pytest.mark.parametrize("count", [10, 20, 30, 70, 100])
def test_pool_of_a_decimal_share_is_not_rounded_up_by_its_last_bit(backend, count):
    """0.7 * 10 is a little more than 7 in binary, 0.1 * 30 a little more than 3."""
    labels = torch.arange(count)[None]
    relevance = -torch.arange(count, dtype=torch.float32)[None]
    for tenths in range(1, 10):
        labels_of_last = labels.clone()
        labels_of_last[0, tenths * count // 10 :] = tenths * count // 10  # one big cluster behind the pool
        picks = vt.cluster_topk(labels_of_last, relevance, 1, pool=tenths / 10)
        check(labels_of_last, relevance, tenths * count // 10, pool=tenths / 10)
        assert picks.tolist() == [[0]]


def test_any_names_of_clusters(backend):
    labels, relevance = inputs(40, 6)
    names = torch.tensor([39, 3, 17, 0, 20, 8])
    check(names[labels], relevance, 17)


@pytest.mark.parametrize("wrong", [-1, -(2**63), 40, 2**62])
def test_label_outside_belongs_to_no_cluster(backend, wrong):
    labels, relevance = inputs(40, 6)
    labels[:, ::4] = wrong
    relevance[:, ::4] = 5.0
    picks = vt.cluster_topk(labels, relevance, 40, sort=False)
    assert (picks[:, 30:] == -1).all()
    for row in picks[:, :30].tolist():
        assert sorted(row) == [i for i in range(40) if i % 4]
    assert vt.cluster_topk(torch.full((2, 5), wrong), torch.ones(2, 5), 3).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_relevance_counts_as_minus_one(backend, value):
    labels, relevance = inputs(65, 9)
    relevance[:, [3, 8, 40]] = value
    clean = relevance.nan_to_num(-1, -1, -1)
    assert torch.equal(check(labels, relevance, 20), check(labels, clean, 20))


@each_int
def test_lengths_are_the_tokens_of_a_row(backend, int_dtype):
    labels, relevance = inputs(33, 6, batch=7)
    lengths = ragged(7, 33, int_dtype)
    clean = check(labels, relevance, 20, pool=0.3, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        labels[b, max(length, 0) :], relevance[b, max(length, 0) :] = 0, NAN
    assert torch.equal(check(labels, relevance, 20, pool=0.3, lengths=lengths), clean)


def test_means_are_wider_than_the_input(backend):
    """A thousand halves and one token of 0.51: in half precision the means would be equal."""
    labels = torch.zeros(1, 2002, dtype=torch.int64)
    labels[0, 1001:] = 1
    relevance = torch.full((1, 2002), 0.5, dtype=torch.float16)
    relevance[0, 2001] = 0.51
    assert vt.cluster_topk(labels, relevance, 1, pool=0.0, sort=False).tolist() == [[2001]]


def test_labels_of_token_clusters_fit(backend):
    features = Draw().normal(3, 1, 8) + Draw(1).normal(3, 60, 8)
    labels = vt.token_clusters(features, threshold=0.75, lengths=torch.tensor([60, 30, 0]))
    picks = vt.cluster_topk(labels, torch.rand(3, 60), 40)  # without lengths: -1 is no cluster
    assert (picks >= 0).sum(1).tolist() == [40, 30, 0]
