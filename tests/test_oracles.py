"""The oracles on cases small enough to do by hand, and the judge of greedy picks on right and wrong answers."""

import math

import numpy as np
import pytest
import torch
from oracles import (
    Coverage,
    ascending,
    attention,
    check_picks,
    check_selection,
    clear_threshold,
    cosine,
    greedy,
    profile,
    propagate,
    row_topk,
    scope_problems,
    topk,
)

# Two groups, {0, 1, 2} and {3}; 2 covers its group best.
GROUPS = np.array([[1.0, 0.5, 0.75, 0.0], [0.5, 1.0, 0.75, 0.0], [0.75, 0.75, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def test_greedy_by_hand():
    assert greedy(Coverage(GROUPS), 4) == ([2, 3, 0, 1], [2.5, 1.0, 0.25, 0.25])


def test_greedy_by_hand_weighted():
    weight = np.array([1.0, 0.0, -3.0, 2.0])
    assert greedy(Coverage(GROUPS, weight), 4) == ([0, 3, 1, 2], [2.25, 2.0, 0.0, 0.0])
    assert greedy(Coverage(GROUPS, weight, "add"), 4) == ([0, 3, 1, 2], [3.25, 3.0, 0.5, 0.25])


def test_greedy_ranks_nan_last_and_stops_at_the_valid_candidates():
    weight = np.array([math.nan, 1.0, -math.inf, 1.0])
    picks, gains = greedy(Coverage(GROUPS, weight, valid=3), 4)
    assert picks == [1, 0, 2, -1]
    assert gains[0] == 2.25 and math.isnan(gains[1]) and math.isnan(gains[2]) and gains[3] == 0


@pytest.mark.parametrize("tolerance", [0.0, 2.5e-7])
def test_judge_accepts_the_exact_answer(tolerance):
    assert check_picks(Coverage(GROUPS), [2, 3, 0, 1], [2.5, 1.0, 0.25, 0.25], tolerance=tolerance) == 0


@pytest.mark.parametrize(
    ("picks", "gains", "says"),
    [
        ([0, 3, 2, 1], None, "step 0 took 0 of score 2.25, 2 leads"),
        ([2, 0, 3, 1], None, "step 1 took 0 of score 0.25, 3 leads"),
        ([2, 3, 3, 0], None, "taken or invalid"),
        ([2, 3, 9, 0], None, "taken or invalid"),
        ([2, -1, 3, 0], None, "3 was left"),
        ([2, 3, 0, 1], [2.5, 1.0, 0.2501, 0.25], "gain 0.2501, right is 0.25"),
        ([2, 3, 0, 1], [2.5, 1.0, math.nan, 0.25], "gain nan"),
    ],
    ids=["wrong first", "wrong second", "repeated", "out of range", "early -1", "wrong gain", "nan gain"],
)
def test_judge_rejects(picks, gains, says):
    with pytest.raises(AssertionError, match=says):
        check_picks(Coverage(GROUPS), picks, gains)


def test_judge_takes_a_near_tie_but_not_beyond_the_band():
    near = np.array([[1.0, 0.0], [0.0, 1.0 + 3e-7]])
    assert check_picks(Coverage(near), [1, 0]) == 0
    assert check_picks(Coverage(near), [0, 1]) == 1
    with pytest.raises(AssertionError, match="1 leads"):
        check_picks(Coverage(near), [0, 1], tolerance=1e-7)


def test_judge_wants_the_lowest_of_equal_scores():
    with pytest.raises(AssertionError, match="lowest index of this tie is 0"):
        check_picks(Coverage(np.eye(2)), [1, 0], tolerance=0)
    copies = np.array([[0.3, 0.1, 0.3], [0.2, 0.7, 0.2]])
    assert check_picks(Coverage(copies), [1, 0, 2]) == 0
    with pytest.raises(AssertionError, match="a copy of 0"):
        check_picks(Coverage(copies), [1, 2, 0])


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_judge_knows_scores_that_are_zero_on_every_machine(combine):
    similarity = np.array([[-0.5, -1.0, 1.0], [0.0, -2.0, 1.0]])
    with pytest.raises(AssertionError, match="a copy of 0"):
        check_picks(Coverage(similarity, np.ones(3), combine), [2, 1, 0])
    with pytest.raises(AssertionError, match="a copy of 0"):
        check_picks(Coverage(GROUPS, np.array([0.0, -1.0, 0.0, 1.0])), [3, 1, 0])


def test_judge_wants_nan_last_and_lowest_first():
    weight = np.array([math.nan, math.nan, 1.0, 1.0])
    with pytest.raises(AssertionError, match="NaN, right is 2"):
        check_picks(Coverage(GROUPS, weight), [0, 2])
    with pytest.raises(AssertionError, match="NaN, right is 0"):
        check_picks(Coverage(GROUPS, weight), [2, 3, 1, 0])
    check_picks(Coverage(GROUPS, weight), [2, 3, 0, 1], [2.5, 1.0, math.nan, math.nan])


def test_judge_wants_padding_only_behind_the_valid_candidates():
    check_picks(Coverage(GROUPS, valid=2), [0, 1, -1], [2.25, 0.5, 0.0])
    with pytest.raises(AssertionError, match="no candidate was left"):
        check_picks(Coverage(GROUPS, valid=2), [0, 1, 2])
    with pytest.raises(AssertionError, match="with gain"):
        check_picks(Coverage(GROUPS, valid=2), [0, 1, -1], [2.25, 0.5, 1.0])


def test_judge_compares_the_objective_when_it_took_a_near_tie():
    # Both first picks tie within a wide band, but 0 leaves nothing for the second.
    similarity = np.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0 + 1e-7, 0.0, 0.0], [1.0, 0.0, 1.0, 1.0]])
    assert check_picks(Coverage(similarity), [0, 1], tolerance=1e-7) == 0
    with pytest.raises(AssertionError, match="objective"):
        check_picks(Coverage(similarity), [1, 2], tolerance=0.5)


def test_judge_names_the_row():
    with pytest.raises(AssertionError, match="row 1: step 0"):
        check_selection([Coverage(GROUPS), Coverage(GROUPS)], torch.tensor([[2, 3], [3, 2]]))


def test_cosine_ignores_zero_and_non_finite_rows():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0], [math.inf, 0.0], [1e25, 0.0], [1e-25, 0.0], [-3.0, -4.0]])
    c = cosine(x)
    np.testing.assert_allclose(c[[0, 0, 6], [0, 6, 6]], [1.0, -1.0, 1.0], atol=1e-15)
    c[np.ix_([0, 6], [0, 6])] = 0
    assert not c.any()


def test_scope_problem_by_hand():
    features = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [0.0, math.nan], [5.0, 0.0]]])
    saliency = torch.tensor([[0.5, -1.0, 1.0, 2.0]])
    (problem,) = scope_problems(features, saliency, alpha=2.0, lengths=torch.tensor([3]))
    assert greedy(problem, 4) == ([0, 1, 2, -1], [0.25, 0.0, 0.0, 0.0])
    (problem,) = scope_problems(features, saliency, alpha=0.0)
    assert greedy(problem, 4) == ([0, 1, 2, 3], [2.0, 1.0, 0.0, 0.0])


def test_topk_by_hand():
    scores = [0.0, math.nan, -math.inf, math.inf, -0.0, 1.0]
    assert topk(scores, 6, sort=False) == [3, 5, 0, 4, 2, 1]
    assert topk(scores, 3) == [0, 3, 5]
    assert topk(scores, 5, valid=3, sort=False) == [0, 2, 1, -1, -1]


def test_ascending_puts_padding_last():
    assert ascending([4, -1, 2, -1, 3]) == [2, 3, 4, -1, -1]


def test_row_topk_by_hand():
    scores = [0.0, 1.0, 3.0, -2.0, math.nan, 9.0, math.inf, 0.0]
    assert row_topk(scores, 4, 2, sort=False) == [6, 7, 0, 1, 2, 3, 4, 5]
    assert row_topk(scores, 2, 2) == [0, 1, 6, 7]


def test_propagation_by_hand():
    features = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [0.0, 2.0], [math.inf, 0.0], [0.0, 0.0], [4.0, 3.0]]])
    scores, degree = propagate(features, threshold=0.9, lengths=torch.tensor([5]))
    assert degree.tolist() == [[2, 2, 1, 0, 0, 0]]
    np.testing.assert_allclose(scores, [[1.0, 1.0, 2.0, 0.0, 0.0, 0.0]])
    scores, degree = propagate(features, threshold=0.7, temperature=0.2, iterations=1)
    assert degree.tolist() == [[3, 3, 1, 0, 0, 3]]
    e = math.exp(-1)
    flow = 4 / (2 + e) + 5 * e / (1 + 2 * e)
    np.testing.assert_allclose(scores[0], [flow / 3, flow / 3, 2.0, 0.0, 0.0, (4 * e / (2 + e) + 5 / (1 + 2 * e)) / 3])


def test_a_clear_threshold_is_far_from_every_similarity():
    features = torch.tensor([[[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]])
    assert clear_threshold(features, 0.7) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert clear_threshold(features, 0.4) == pytest.approx(math.sqrt(0.5) / 2)
    assert clear_threshold(features, 0.7, lengths=torch.tensor([1])) == 0.5


def test_profile_by_hand():
    query = torch.tensor([[[[9.0], [math.log(2.0)], [0.0], [math.nan]]]])
    key = torch.tensor([[[[0.0], [1.0], [math.inf], [9.0]]]])
    received, given = profile(query, key, scale=1.0, lengths=torch.tensor([3]))
    np.testing.assert_allclose(received, [[(2 / 3 + 1 / 2) / 2, 0.0, 0.0]], atol=1e-7)
    np.testing.assert_allclose(given, [[1 / 3, 1 / 4, 0.0]], atol=1e-7)
    received, given = profile(query, key, scale=2.0, softmax=False)
    mean = math.log(2.0) / 3
    np.testing.assert_allclose(received, [[2 * mean, math.nan, 18 * mean]], atol=1e-6)
    np.testing.assert_allclose(given, [[2 * math.log(2.0) * 10 / 3, 0.0, math.nan]], atol=1e-6)


def test_attention_by_hand():
    query = torch.tensor([[[math.log(2.0)], [1.0]]])
    key = torch.tensor([[[[0.0], [1.0], [0.0], [9.0]], [[math.nan], [math.inf], [3.0], [9.0]]]])
    lengths = torch.tensor([3])
    want = np.array([[0.25 + 0.0, 0.5 + 0.0, 0.25 + 1.0, 0.0]])
    np.testing.assert_allclose(attention(query, key, scale=1.0, prefix=0, reduce="sum", lengths=lengths), want, atol=1e-7)
    np.testing.assert_allclose(attention(query, key, scale=1.0, prefix=2, lengths=lengths), want[:, 2:] / 2, atol=1e-7)
    assert not attention(query, key, scale=1.0, lengths=torch.tensor([0])).any()
