"""scope_select: weighted greedy coverage of the cosine similarity. Properties common to all ops are in test_invariance.py."""

import math

import pytest
import torch
from cases import DTYPES, Draw, each_dtype, each_int, fixed_order, ragged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import TOLERANCE, check_selection, scope_problems

import vtkernels as vt

OP = "scope_select"
NAN, INF = math.nan, math.inf
# Features that are no direction: similarity 0 with everything.
BAD_ROWS = {
    "zero": 0.0,
    "nan": NAN,
    "inf": INF,
    "-inf": -INF,
    "norm_overflows": 1e25,
    "norm_underflows": 1e-25,
}
FEW_EXAMPLES = settings(
    derandomize=True, max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def inputs(n, d, *, batch=2, seed=0, dtype=torch.float32):
    draw = Draw(seed, dtype)
    return draw.normal(batch, n, d), draw.uniform(batch, n)


def one_hot(n, d, *, batch=2, seed=0, dtype=torch.float32):
    """Unit vectors times powers of two: every sum is exact, and most candidates tie."""
    draw = Draw(seed)
    x = torch.nn.functional.one_hot(draw.integers(0, d, batch, n), d).to(dtype)
    return x * 2.0 ** draw.integers(-3, 4, batch, n, 1).to(dtype), draw.integers(0, 3, batch, n).to(dtype) / 2


def check(features, saliency, k, *, tolerance=TOLERANCE, fixed_order=True, **options):
    picks = vt.scope_select(features, saliency, k, sort=False, **options)
    problems = scope_problems(features, saliency, fixed_order=fixed_order, **options)
    return picks, check_selection(problems, picks, tolerance=tolerance)


@each_dtype
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (15, 33), (17, 2), (33, 17), (63, 16), (129, 65), (151, 64)])
def test_picks_are_those_of_the_mathematics(backend, n, d, combine, dtype):
    features, saliency = inputs(n, d, dtype=dtype)
    check(features, saliency, n if n < 64 else 40, combine=combine)


def test_well_separated_picks_need_no_tolerance(backend):
    features, saliency = inputs(33, 16, batch=4)
    assert check(features, saliency, 12)[1] == 0


@each_dtype
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("n", [2, 17, 65, 151])
def test_lowest_index_wins_exact_ties(backend, n, combine, dtype):
    features, saliency = one_hot(n, 7, dtype=dtype)
    check(features, saliency, n, combine=combine, tolerance=0)
    check(features, None, n, combine=combine, tolerance=0)


@pytest.mark.parametrize("exact", [True, False], ids=["whole", "rounded"])
def test_lowest_index_wins_among_copies_far_apart(backend, exact):
    """Sums of whole numbers are the same in every order."""
    features, saliency = inputs(48, 24)
    features = (features * 8).round() if exact else features
    check(features.repeat(1, 3, 1), saliency.repeat(1, 3), 144, fixed_order=exact or fixed_order(backend))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_alpha_is_the_exponent_of_the_saliency(backend, combine, alpha):
    features, saliency = inputs(33, 16)
    saliency[:, ::5] = 0
    check(features, saliency, 33, alpha=alpha, combine=combine)


def test_alpha_zero_weighs_zero_saliency_one(backend):
    features, saliency = inputs(33, 16)
    saliency[:, ::3] = 0
    picks = vt.scope_select(features, saliency, 20, alpha=0.0, sort=False)
    assert torch.equal(picks, vt.scope_select(features, None, 20, sort=False))


def test_weight_that_overflows_ranks_last(backend):
    picks = vt.scope_select(torch.eye(4)[None], torch.tensor([[1e25, 1, 2, 3]]), 4, alpha=2.0, sort=False)
    assert picks.tolist() == [[3, 2, 1, 0]]


def test_missing_saliency_adds_nothing(backend):
    features, _ = inputs(33, 16)
    picks, _ = check(features, None, 33, combine="add")
    assert torch.equal(picks, vt.scope_select(features, None, 33, sort=False))


@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_negative_saliency_is_zero(backend, combine):
    features, saliency = inputs(33, 16)
    saliency -= 0.5
    picks, _ = check(features, saliency, 33, combine=combine)
    assert torch.equal(picks, vt.scope_select(features, saliency.clamp_min(0), 33, combine=combine, sort=False))


def test_all_zero_saliency_gives_the_first_tokens(backend):
    features, saliency = inputs(33, 16)
    picks = vt.scope_select(features, torch.zeros_like(saliency), 9, sort=False)
    assert torch.equal(picks, torch.arange(9).expand(2, 9))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_non_finite_saliency_ranks_last_by_index(backend, combine, alpha):
    features, saliency = inputs(17, 16)
    saliency[0, [3, 8, 11]] = torch.tensor([NAN, INF, -INF])
    picks, _ = check(features, saliency, 17, combine=combine, alpha=alpha)
    assert picks[0, -3:].tolist() == [3, 8, 11]


@pytest.mark.parametrize("dtype", [t for t in DTYPES if t != torch.float16], ids=["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("combine", ["multiply", "add"])
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_row_has_no_similarity_and_spoils_nothing(backend, kind, combine, dtype):
    features, saliency = inputs(33, 16, batch=3, dtype=dtype)
    saliency[1, 20] = 1.0  # most salient, yet without similarity
    features[1, 20, :] = BAD_ROWS[kind]
    picks, _ = check(features, saliency, 33, combine=combine)
    others = [j for j in range(33) if j != 20]
    without = vt.scope_select(features[1:2, others], saliency[1:2, others], 32, combine=combine, sort=False)
    assert [others[j] for j in without[0]] == [j for j in picks[1].tolist() if j != 20]
    assert combine == "add" or picks[1, -1] == 20
    for b in (0, 2):
        alone = vt.scope_select(features[b : b + 1], saliency[b : b + 1], 33, combine=combine, sort=False)
        assert torch.equal(alone[0], picks[b])


@each_dtype
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_one_bad_entry_makes_the_row_bad(backend, value, dtype):
    features, _ = inputs(17, 33, dtype=dtype)
    features[0, 4, 32] = value
    picks, _ = check(features, None, 17)
    assert picks[0, -1] == 4


def test_rows_without_any_direction_are_taken_in_order(backend):
    features = torch.tensor([0.0, NAN, INF, 1e25, 0.0]).view(1, 5, 1).expand(1, 5, 8)
    assert vt.scope_select(features, None, 5, sort=False).tolist() == [[0, 1, 2, 3, 4]]
    assert vt.scope_select(features, torch.tensor([[1.0, 2, 0, 2, 3]]), 5, combine="add", sort=False).tolist() == [
        [4, 1, 3, 0, 2]
    ]


def test_tokens_without_channels_are_all_equal(backend):
    assert vt.scope_select(torch.zeros(2, 5, 0), None, 3).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("power", [-50, 40])
def test_length_of_a_row_does_not_matter(backend, power):
    features, saliency = inputs(33, 16)
    scale = 2.0 ** Draw(1).integers(min(power, 0), max(power, 0) + 1, 2, 33, 1)
    picks = vt.scope_select(features, saliency, 33, sort=False)
    assert torch.equal(vt.scope_select(features * scale, saliency, 33, sort=False), picks)


def test_half_precision_is_computed_in_float32(backend):
    """Gains above 256 differ by less than half precision can tell; rounding them would change picks."""
    draw = Draw(0, torch.float16)
    features = draw.normal(1, 1, 32) + draw.normal(1, 400, 32) / 4
    check(features, draw.uniform(1, 400), 40)
    check(features.bfloat16(), None, 40)


def test_saliency_may_have_another_dtype(backend):
    features, saliency = inputs(33, 16)
    check(features.half(), saliency, 33)
    check(features, saliency.bfloat16(), 33)
    check(features, saliency.double(), 33)


@FEW_EXAMPLES
@given(seed=st.integers(0, 2**20), n=st.integers(1, 40), combine=st.sampled_from(["multiply", "add"]))
def test_greedy_order_is_a_prefix_of_the_next_budget(backend, seed, n, combine):
    features, saliency = inputs(n, 8, seed=seed)
    full = vt.scope_select(features, saliency, n, combine=combine, sort=False)
    for k in {0, 1, n // 2, n - 1}:
        assert torch.equal(vt.scope_select(features, saliency, k, combine=combine, sort=False), full[:, :k])


@FEW_EXAMPLES
@given(seed=st.integers(0, 2**20))
def test_renumbering_the_tokens_renumbers_the_picks(backend, seed):
    features, saliency = inputs(24, 16, batch=1, seed=seed)
    picks, near_ties = check(features, saliency, 8)
    order = torch.randperm(24, generator=Draw(seed).generator)
    moved, near_ties_moved = check(features[:, order], saliency[:, order], 8)
    assert near_ties or near_ties_moved or torch.equal(order[moved], picks)


@pytest.mark.parametrize("k", [0, 1, 16, 33])
def test_sort_gives_token_order(backend, k):
    features, saliency = inputs(33, 16)
    picks = vt.scope_select(features, saliency, k, sort=False)
    assert torch.equal(vt.scope_select(features, saliency, k), picks.sort(1).values)


def test_whole_budget_keeps_every_token_once(backend):
    features, saliency = inputs(63, 16)
    saliency[0, ::7] = NAN
    features[1, ::5] = 0
    assert torch.equal(vt.scope_select(features, saliency, 63), torch.arange(63).expand(2, 63))


@each_int
@pytest.mark.parametrize("combine", ["multiply", "add"])
def test_tokens_behind_the_length_do_not_exist(backend, combine, int_dtype):
    features, saliency = inputs(33, 16, batch=7)
    lengths = ragged(7, 33, int_dtype)
    clean, _ = check(features, saliency, 20, combine=combine, lengths=lengths)
    for b, length in enumerate(lengths.tolist()):
        features[b, max(length, 0) :], saliency[b, max(length, 0) :] = NAN, INF
    dirty, _ = check(features, saliency, 20, combine=combine, lengths=lengths)
    assert torch.equal(dirty, clean)
    ordered = vt.scope_select(features, saliency, 20, combine=combine, lengths=lengths)
    assert ordered[1].tolist() == sorted(clean[1, :16].tolist()) + [-1] * 4
    assert (ordered[[2, 4]] == -1).all()
