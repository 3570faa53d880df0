"""token_clusters: connected components over a cosine threshold. Properties common to all ops are in test_invariance.py."""

import math

import oracle_par
import pytest
import torch
from cases import SIZES, Draw, each_dtype, each_int, ragged, similar
from oracles import clear_threshold

import vtkernels as vt

OP = "token_clusters"
NAN, INF = math.nan, math.inf


def check(features, near, *, lengths=None):
    """Every label equal, at a threshold that no similarity is close to."""
    threshold = clear_threshold(features, near, lengths=lengths)
    labels = vt.token_clusters(features, threshold=threshold, lengths=lengths)
    assert labels.tolist() == oracle_par.clusters(features, threshold, lengths=lengths)
    return labels


@each_dtype
@pytest.mark.parametrize("n", SIZES)
def test_labels_are_those_of_union_find(backend, n, dtype):
    features = similar(Draw(n, dtype), 2, n, 12)
    sizes = {len(set(check(features, near)[0].tolist())) for near in (0.3, 0.6, 0.75, 0.95)}
    assert n < 17 or len(sizes) > 2  # one component, some, many


def chain(order, step=0.1):
    """Unit vectors along an arc: only neighbours in ``order`` are within ``step``."""
    angle = torch.empty(len(order), dtype=torch.float64)
    angle[torch.tensor(order)] = step * torch.arange(len(order), dtype=torch.float64)
    return torch.stack([angle.cos(), angle.sin()], 1).float()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [2, 3, 17, 60])
def test_a_chain_is_one_cluster_however_it_is_numbered(backend, n, seed):
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    features = chain(order)[None]
    assert vt.token_clusters(features, threshold=math.cos(0.15)).tolist() == [[0] * n]
    assert vt.token_clusters(features, threshold=math.cos(0.05)).tolist() == [list(range(n))]
    cut = n // 2
    features = torch.cat([chain(order)[:, :], torch.zeros(n, 2)], 1)
    for i in order[cut:]:
        features[i] = features[i].roll(2)  # the rest of the chain in another plane
    halves = [min(order[:cut]) if i in order[:cut] else min(order[cut:]) for i in range(n)]
    assert vt.token_clusters(features[None], threshold=math.cos(0.15)).tolist() == [halves]


@pytest.mark.parametrize("numbering", ["rising", "falling", "bits", "zigzag"])
def test_long_chains_in_hard_numberings(backend, numbering):
    """A ring of 512 in high dimensions: neighbours share a coordinate."""
    n = 512
    order = {
        "rising": list(range(n)),
        "falling": list(range(n))[::-1],
        "bits": [int(f"{i:09b}"[::-1], 2) for i in range(n)],
        "zigzag": [i // 2 if i % 2 == 0 else n - 1 - i // 2 for i in range(n)],
    }[numbering]
    features = torch.zeros(1, n, n + 1)
    for place, i in enumerate(order):
        features[0, i, place] = features[0, i, place + 1] = 1  # cosine 1/2 with the next one
    assert vt.token_clusters(features, threshold=0.49).unique().tolist() == [0]
    assert vt.token_clusters(features, threshold=0.51).tolist() == [list(range(n))]


def test_many_components_of_every_size(backend):
    labels, label = [], 0
    for size in range(1, 30):
        labels += [label] * size
        label += size
    n = len(labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    directions = torch.eye(29)[[labels.index(c) and sorted(set(labels)).index(c) for c in labels]]
    features = torch.empty(n, 29)
    features[torch.tensor(order)] = directions * torch.rand(n, 1).add(0.5)
    smallest = {c: min(order[i] for i in range(n) if labels[i] == c) for c in set(labels)}
    want = torch.empty(n, dtype=torch.int64)
    for i in range(n):
        want[order[i]] = smallest[labels[i]]
    assert vt.token_clusters(features[None], threshold=0.9).tolist() == [want.tolist()]


@each_dtype
@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
def test_row_without_a_direction_is_a_cluster_of_its_own(backend, value, dtype):
    features = similar(Draw(3, dtype), 2, 33, 12)
    features[1, 4] = value
    features[1, 9, 2] = value if value else features[1, 9, 2]
    labels = check(features, 0.3)
    assert labels[1, 4] == 4
    assert (labels[1] == 4).sum() == 1
    assert value == 0.0 or (labels[1, 9] == 9 and (labels[1] == 9).sum() == 1)


def test_norms_beyond_float32_have_no_direction(backend):
    features = torch.ones(1, 4, 3)
    features[0, 1], features[0, 2] = 3e38, 1e-30
    assert vt.token_clusters(features, threshold=0.5).tolist() == [[0, 1, 2, 0]]


def test_opposite_rows_are_not_alike(backend):
    features = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]]])
    assert vt.token_clusters(features, threshold=0.9).tolist() == [[0, 1, 0, 1]]


@each_int
def test_tokens_behind_the_length_have_no_label_and_join_nothing(backend, int_dtype):
    features = similar(Draw(5), 7, 33, 12)
    lengths = ragged(7, 33, int_dtype)
    clean = check(features, 0.6, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        features[b, max(length, 0) :] = features[b, 0].clone()  # would join everything
        features[b, max(length, 0) + 1 :] = NAN
    assert torch.equal(check(features, 0.6, lengths=lengths), clean)


def test_threshold_below_float32_is_above_zero(backend):
    """Orthogonal rows, and rows without a direction, have similarity 0, which reaches no threshold."""
    features = torch.cat([torch.eye(4), torch.zeros(2, 4), torch.eye(4)[1:2]])[None]
    assert vt.token_clusters(features, threshold=1e-320).tolist() == [[0, 1, 2, 3, 4, 5, 1]]


def test_threshold_may_be_an_int(backend):
    features = torch.eye(3)[[0, 1, 0]][None]
    assert vt.token_clusters(features, threshold=1).tolist() == [[0, 1, 0]]


def test_no_channels(backend):
    assert vt.token_clusters(torch.ones(2, 3, 0), threshold=0.5).tolist() == [[0, 1, 2]] * 2
