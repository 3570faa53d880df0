"""graph_propagate: norms on a similarity graph. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import Draw, bits, each_dtype, each_int, ragged, similar
from oracles import array, clear_threshold, propagate

import vtkernels as vt

OP = "graph_propagate"
NAN, INF = math.nan, math.inf
SHAPES = [(1, 1), (1, 8), (2, 3), (15, 8), (17, 64), (33, 5), (64, 64), (65, 17), (151, 80), (300, 33)]


def inputs(n, d, *, batch=2, seed=0, dtype=torch.float32):
    return similar(Draw(seed, dtype), batch, n, d)


def check(features, *, threshold=0.5, temperature=0.03, iterations=5, lengths=None):
    """Degrees exactly; scores as far as the rounding of a similarity, divided by the temperature, lets them be known."""
    threshold = clear_threshold(features, threshold, lengths=lengths)
    options = {"threshold": threshold, "temperature": temperature, "iterations": iterations, "lengths": lengths}
    scores, degree = vt.graph_propagate(features, **options)
    assert (scores.dtype, degree.dtype) == (torch.float32, torch.int32)
    want, edges = propagate(features, **options)
    assert degree.tolist() == edges.tolist()
    allowed = 1e-6 + 2 * iterations * min(1.0, 4e-7 / temperature + 1e-7)
    error = abs(array(scores) - want) / (want + 1e-30)
    assert error.max(initial=0.0) <= allowed, f"{error.max()} > {allowed}"
    return scores, degree


@each_dtype
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_scores_and_degrees_are_those_of_the_mathematics(backend, n, d, dtype):
    check(inputs(n, d, dtype=dtype))


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("temperature", [0.005, 0.1, 10.0])
@pytest.mark.parametrize("iterations", [0, 1, 3, 20])
def test_options(backend, threshold, temperature, iterations):
    check(inputs(63, 8), threshold=threshold, temperature=temperature, iterations=iterations)


def test_projected_features_of_an_image(backend):
    check(inputs(576, 256, batch=1))


def groups(*norms_of_each):
    """Tokens of one group point the same way, tokens of two groups are orthogonal; norms and similarities are exact."""
    rows = [(g, norm) for g, norms in enumerate(norms_of_each) for norm in norms]
    features = torch.zeros(1, len(rows), len(norms_of_each))
    for i, (g, norm) in enumerate(rows):
        features[0, i, g] = norm
    return features


@each_dtype
def test_a_group_shares_its_norms_evenly(backend, dtype):
    features = groups([1, 2, 3, 6], [5], [4, 8]).to(dtype)
    for iterations in (1, 5):
        scores, degree = vt.graph_propagate(features, iterations=iterations)
        assert degree.tolist() == [[4, 4, 4, 4, 1, 2, 2]]
        assert scores.tolist() == [[0.75, 0.75, 0.75, 0.75, 5, 3, 3]]


def test_no_step_gives_norm_over_degree(backend):
    scores, degree = vt.graph_propagate(groups([1, 2, 3, 6], [5], [4, 8]), iterations=0)
    assert degree.tolist() == [[4, 4, 4, 4, 1, 2, 2]]
    assert scores.tolist() == [[0.25, 0.5, 0.75, 1.5, 5, 2, 4]]


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_what_flows_is_conserved(backend, iterations):
    features = inputs(65, 8)
    scores, degree = vt.graph_propagate(features, iterations=iterations)
    torch.testing.assert_close((scores * degree).sum(1), features.norm(dim=-1).sum(1), rtol=1e-5, atol=0)


@each_dtype
def test_a_token_is_its_own_neighbour_even_at_threshold_one(backend, dtype):
    """A similarity with oneself is 1, whatever the rounding says."""
    features = Draw(3, dtype).normal(2, 151, 33)
    scores, degree = vt.graph_propagate(features, threshold=1.0)
    assert (degree == 1).all()
    torch.testing.assert_close(scores, features.double().norm(dim=-1).float(), rtol=1e-6, atol=0)


def test_threshold_below_float32_is_above_zero(backend):
    """Orthogonal rows have similarity 0, which reaches no threshold."""
    _, degree = vt.graph_propagate(torch.eye(4)[None, [0, 1, 2, 1]], threshold=1e-320)
    assert degree.tolist() == [[1, 2, 1, 2]]


def test_an_edge_goes_both_ways(backend):
    """The last bit of a similarity decides: both ends must see the same one."""
    draw = Draw(0)
    features = draw.normal(1, 1, 64) + 1e-4 * draw.normal(1, 151, 64)
    for threshold in (1.0, 1 - 2**-24, 1 - 2**-23, 1 - 2**-22):
        degree = vt.graph_propagate(features, threshold=threshold)[1]
        assert int((degree - 1).sum()) % 2 == 0


def test_copies_stay_finite_at_any_temperature(backend):
    """The similarity of copies may round beyond 1."""
    features = inputs(40, 64).repeat(1, 3, 1)
    for temperature in (1e-300, 1e-40, 1e-8, 1e-4, 1e30, 1e300):
        scores, degree = vt.graph_propagate(features, threshold=0.9, temperature=temperature)
        assert scores.isfinite().all() and (scores > 0).all()
        assert (degree >= 3).all()


def test_a_low_temperature_keeps_everyones_own(backend):
    features = inputs(33, 8)
    scores, degree = vt.graph_propagate(features, temperature=1e-6)
    torch.testing.assert_close(scores * degree, features.norm(dim=-1), rtol=1e-5, atol=0)


def test_a_high_temperature_is_a_plain_average(backend):
    features = torch.cat([groups([1, 2, 3, 6]), groups([2, 2, 2, 2])])
    assert vt.graph_propagate(features, temperature=1e6)[0].tolist() == [[0.75] * 4, [0.5] * 4]


@pytest.mark.parametrize("bad", [0.0, NAN, INF, -INF, 1e30, 1e-30])
def test_unusable_row_has_no_edge_and_changes_no_other(backend, bad):
    """Zero, not finite, or with a squared norm outside the range of float32."""
    features = inputs(33, 8, batch=3)
    without = torch.cat([features[1:2, :7], features[1:2, 8:]], dim=1)
    clean = vt.graph_propagate(features)
    features[1, 7] = bad
    if math.isnan(bad):
        features[1, 7, 1:] = 1.0  # one entry is enough
    scores, degree = vt.graph_propagate(features)
    assert (scores[1, 7], degree[1, 7]) == (0, 0)
    others = [i for i in range(33) if i != 7]
    alone = vt.graph_propagate(without)
    assert degree[1, others].tolist() == alone[1][0].tolist()
    torch.testing.assert_close(scores[1, others], alone[0][0], rtol=1e-5, atol=0)
    for b in (0, 2):
        torch.testing.assert_close(scores[b], clean[0][b], rtol=1e-5, atol=0)
        assert torch.equal(degree[b], clean[1][b])


@pytest.mark.parametrize("bad", [0.0, NAN, INF])
def test_nothing_usable(backend, bad):
    scores, degree = vt.graph_propagate(torch.full((2, 9, 4), bad))
    assert torch.equal(scores, torch.zeros(2, 9)) and torch.equal(degree, torch.zeros(2, 9, dtype=torch.int32))


def test_no_channels(backend):
    scores, degree = vt.graph_propagate(torch.ones(2, 5, 0))
    assert not scores.any() and not degree.any()


@each_int
def test_tokens_behind_the_length_are_no_neighbours(backend, int_dtype):
    features = inputs(33, 8, batch=7)
    lengths = ragged(7, 33, int_dtype)
    clean = check(features, lengths=lengths)
    threshold = clear_threshold(features, 0.5, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        features[b, max(length, 0) :] = NAN if b % 2 else features[b, 0]
    scores, degree = vt.graph_propagate(features, threshold=threshold, lengths=lengths)
    assert torch.equal(bits(scores), bits(clean[0])) and torch.equal(degree, clean[1])
    assert not scores[1, 16:].any() and not degree[1, 16:].any()
    assert not scores[[2, 4]].any() and not degree[[2, 4]].any()


def test_half_precision_is_computed_in_float32(backend):
    """The published code computes the graph in half precision, where edges come and go."""
    for dtype in (torch.float16, torch.bfloat16):
        features = inputs(151, 64, dtype=dtype)
        half, full = vt.graph_propagate(features), vt.graph_propagate(features.float())
        assert torch.equal(half[1], full[1])
        torch.testing.assert_close(half[0], full[0], rtol=1e-6, atol=0)
