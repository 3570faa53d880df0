"""coverage_select: the greedy loop on a matrix of the caller's. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import Draw, bits, each_dtype, each_int, ragged, slow
from oracles import TOLERANCE, check_selection, coverage_problems

import vtkernels as vt

OP = "coverage_select"
NAN, INF = math.nan, math.inf


def inputs(m, n, *, batch=2, seed=0, dtype=torch.float32):
    draw = Draw(seed, dtype)
    return draw.uniform(batch, m, n) * 2 - 1, draw.uniform(batch, n)


def check(similarity, weight, k, *, tolerance=TOLERANCE, **options):
    picks, gains = vt.coverage_select(similarity, weight, k, sort=False, **options)
    check_selection(coverage_problems(similarity, weight, **options), picks, gains, tolerance=tolerance)
    return picks, gains


@each_dtype
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 17), (17, 1), (2, 15), (151, 33), (33, 151), (63, 63), (129, 65)])
def test_picks_and_gains_are_those_of_the_mathematics(backend, m, n, combine, dtype):
    similarity, weight = inputs(m, n, dtype=dtype)
    check(similarity, weight, min(n, 40), combine=combine)
    check(similarity, None, min(n, 40), combine=combine)


@each_dtype
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize(("m", "n"), [(1, 17), (3, 33), (40, 151), (65, 8), (15, 64)])
def test_sums_of_small_integers_are_exact(backend, m, n, combine, dtype):
    """Ties everywhere, and no excuse of rounding: picks and gains must be equal."""
    draw = Draw(m)
    similarity = draw.integers(-2, 4, 3, m, n).to(dtype) / 4
    check(similarity, draw.integers(-1, 3, 3, n).to(dtype), n, combine=combine, tolerance=0)
    check(similarity, None, n, combine=combine, tolerance=0)


def test_lowest_index_wins_among_equal_columns_far_apart(backend):
    similarity, weight = inputs(40, 48)
    check(similarity.repeat(1, 1, 3), weight.repeat(1, 3), 144)


@each_dtype
def test_state_is_float32_whatever_the_input(backend, dtype):
    """A lead of 1 in 700 needs more than the 8 bits of bfloat16, 700 x 30000 more than the range of float16."""
    similarity = torch.ones(1, 700, 2, dtype=dtype)
    similarity[0, 0, 1] = 2
    picks, gains = vt.coverage_select(similarity, None, 1)
    assert (picks.item(), gains.item()) == (1, 701)
    similarity = torch.full((1, 700, 2), 30000.0, dtype=dtype)
    assert vt.coverage_select(similarity, None, 1)[1].item() == float(similarity[0, 0, 0]) * 700


def test_negative_similarity_never_counts(backend):
    similarity = torch.tensor([[[-5.0, 0.5, 1.0], [2.0, 0.5, -9.0]]])
    assert vt.coverage_select(similarity, None, 3, sort=False)[0].tolist() == [[0, 2, 1]]
    picks, gains = vt.coverage_select(-similarity.abs(), None, 3, sort=False)
    assert picks.tolist() == [[0, 1, 2]]
    assert torch.equal(gains, torch.zeros(1, 3))


@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_similarity_counts_as_zero(backend, value, combine):
    similarity, weight = inputs(33, 17, batch=3)
    similarity[1, 4] = value
    similarity[1, :, 6] = value
    similarity[1, 8, 8] = value
    picks, gains = check(similarity, weight, 17, combine=combine)
    clean = vt.coverage_select(similarity.nan_to_num(0, 0, 0), weight, 17, combine=combine, sort=False)
    assert torch.equal(picks, clean[0])
    assert torch.equal(bits(gains), bits(clean[1]))


def test_items_beyond_the_candidates_count(backend):
    similarity = torch.zeros(1, 40, 3)
    similarity[0, 39, 2] = 1
    assert vt.coverage_select(similarity, None, 1)[0].item() == 2


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_nothing_to_cover_leaves_the_weights(backend, combine):
    weight = torch.tensor([[1.0, 3.0, -1.0, 3.0]])
    picks, gains = vt.coverage_select(torch.zeros(1, 0, 4), weight, 4, combine=combine, sort=False)
    added = combine == "add"
    assert picks.tolist() == [[1, 3, 0, 2] if added else [0, 1, 2, 3]]
    assert gains.tolist() == [[3, 3, 1, 0] if added else [0, 0, 0, 0]]


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_non_finite_weight_ranks_last_with_gain_nan(backend, combine):
    similarity, weight = inputs(17, 17)
    weight[1, [2, 5, 7]] = torch.tensor([INF, NAN, -INF])
    picks, gains = check(similarity, weight, 17, combine=combine)
    assert picks[1, -3:].tolist() == [2, 5, 7]
    assert gains[1].isnan().tolist() == [False] * 14 + [True] * 3
    assert gains[0].isfinite().all()


def test_weight_may_have_another_dtype(backend):
    similarity, weight = inputs(17, 33)
    check(similarity.half(), weight, 33)
    check(similarity, weight.bfloat16(), 33)


@each_int
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_lengths_mask_candidates_and_no_items(backend, combine, int_dtype):
    similarity, weight = inputs(33, 33, batch=7)
    lengths = ragged(7, 33, int_dtype)
    clean = check(similarity, weight, 20, combine=combine, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        similarity[b, :, max(length, 0) :], weight[b, max(length, 0) :] = NAN, NAN
    dirty = check(similarity, weight, 20, combine=combine, lengths=lengths)
    assert torch.equal(dirty[0], clean[0])
    assert torch.equal(bits(dirty[1]), bits(clean[1]))


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_first_choices_are_the_answer_of_a_smaller_budget(backend, combine):
    similarity, weight = inputs(40, 33)
    full = vt.coverage_select(similarity, weight, 33, combine=combine, sort=False)
    for k in (0, 1, 2, 15, 32) if slow(backend) else range(33):
        picks, gains = vt.coverage_select(similarity, weight, k, combine=combine, sort=False)
        assert torch.equal(picks, full[0][:, :k])
        assert torch.equal(bits(gains), bits(full[1][:, :k]))


def test_sort_moves_the_gains_with_their_indices(backend):
    similarity, weight = inputs(33, 33, batch=7)
    weight[0, 3] = NAN
    lengths = ragged(7, 33)
    picks, gains = vt.coverage_select(similarity, weight, 20, lengths=lengths, sort=False)
    ordered, moved = vt.coverage_select(similarity, weight, 20, lengths=lengths)
    order = picks.where(picks >= 0, 99).sort(dim=1, stable=True).indices
    assert torch.equal(ordered, picks.gather(1, order))
    assert torch.equal(bits(moved), bits(gains.gather(1, order)))
    assert (gains[picks < 0] == 0).all()


def test_gains_fall_without_weights(backend):
    """Lazy evaluation rests on it: a stale gain is an upper bound, in float32 too."""
    similarity, _ = inputs(151, 129)
    gains = vt.coverage_select(similarity, None, 129, sort=False)[1]
    assert (gains.diff(dim=1) <= 0).all()
