"""crop_topk: budgets per run of tokens and top-k inside. Properties common to all ops are in test_invariance.py."""

import math

import oracle_holov
import pytest
import torch
from cases import SIZES, Draw, each_dtype, each_int, ragged, slow
from oracles import ascending

import vtkernels as vt

OP = "crop_topk"
NAN, INF = math.nan, math.inf
VARIANTS = ("released", "full", "paper")
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def inputs(n, d=24, *, batch=3, seed=0, peak=2.0, dtype=torch.float32):
    """Softmax of normal logits, and features around a common direction."""
    draw = Draw(seed, torch.float64)
    attention = (peak * draw.normal(batch, n)).softmax(1)
    features = draw.normal(batch, 1, d) + draw.normal(batch, n, d)
    return attention.to(dtype), features.to(dtype)


def check(attention, features, k, *, lengths=None, least=1, **options):
    """Equal to the oracle, order included, wherever float32 decides; ``least``: rows of which that must be so."""
    picks = vt.crop_topk(attention, features, k, sort=False, lengths=lengths, **options)
    want = oracle_holov.answers(attention, features, k, lengths=lengths, **options)
    for row, answer in zip(picks.tolist(), want, strict=True):
        if answer.strict:
            assert row == answer.picks
    assert sum(answer.strict for answer in want) >= least
    ordered = vt.crop_topk(attention, features, k, lengths=lengths, **options)
    assert ordered.tolist() == [ascending(row) for row in picks.tolist()]
    return picks


@each_dtype
@each_variant
@pytest.mark.parametrize("n", SIZES)
def test_picks_are_those_of_the_mathematics(backend, n, variant, dtype):
    attention, features = inputs(n, batch=4, seed=n, dtype=dtype)
    least = 0 if variant == "paper" and dtype in (torch.float16, torch.bfloat16) else 1
    for crops, k in ((1, (n + 2) // 3), (4, (n + 2) // 3), (16, 1), (16, (n + 2) // 3)):
        check(attention, features, k, crops=crops, variant=variant, least=least)


@each_dtype
@pytest.mark.parametrize("variant", ["released", "full"])
def test_without_features_the_variance_factor_is_one_and_beta(backend, variant, dtype):
    attention, features = inputs(129, batch=2 if slow(backend) else 6, dtype=dtype)
    for crops in (1, 5, 16, 100):
        check(attention, None, 33, crops=crops, variant=variant)
        # no variance is small here, so the features hardly matter, as in the published code
        check(attention, features, 33, crops=crops, variant=variant)


@each_variant
def test_features_without_channels_have_no_variance(backend, variant):
    attention, features = inputs(23)
    want = vt.crop_topk(attention, torch.zeros_like(features), 9, crops=5, variant=variant)
    assert torch.equal(vt.crop_topk(attention, features[..., :0], 9, crops=5, variant=variant), want)


@each_variant
def test_more_crops_than_tokens(backend, variant):
    attention, features = inputs(17, batch=2 if slow(backend) else 8)
    for crops in (17, 18, 400, 2**40):
        picks = check(attention, features, 5, crops=min(crops, 400), variant=variant)
        assert torch.equal(picks, vt.crop_topk(attention, features, 5, crops=crops, variant=variant, sort=False))


def test_runs_of_one_token_weigh_a_thousandth(backend):
    """20 tokens in 16 runs: four runs of two tokens take nearly everything, as published."""
    attention = torch.full((1, 20), 1 / 32)
    attention[0, 8:] = 1 / 16
    assert vt.crop_topk(attention, None, 8, sort=False).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("n", "crops", "sizes"), [(10, 4, [3, 3, 2, 2]), (9, 3, [3, 3, 3]), (3, 5, [1, 1, 1])])
def test_the_first_runs_are_the_longer_ones(backend, n, crops, sizes):
    """One token of each run, the best: attention falls inside a run."""
    starts = [sum(sizes[:c]) for c in range(len(sizes))]
    attention = torch.cat([torch.tensor([1.0, 0.5, 0.25][:m]) / m for m in sizes])[None]
    weights = [sum([1.0, 0.5, 0.25][:m]) / m for m in sizes]
    assert max(weights) < 2 * min(weights) * 2
    assert vt.crop_topk(attention, None, len(sizes), crops=crops).shape == (1, len(sizes))
    even = torch.zeros(1, n)
    assert vt.crop_topk(even, None, len(sizes), crops=crops).tolist() == [starts]  # no attention: one each


def test_no_attention_gives_one_token_to_each_run(backend):
    zero = torch.zeros(2, 40)
    assert vt.crop_topk(zero, None, 8, crops=4).tolist() == [[0, 10, 20, 30, -1, -1, -1, -1]] * 2
    assert vt.crop_topk(zero, None, 3, crops=4).tolist() == [[0, 10, 20]] * 2
    for variant in ("full", "paper"):
        picks = vt.crop_topk(zero, torch.ones(2, 40, 3), 8, crops=4, variant=variant)
        assert picks.tolist() == [[0, 1, 10, 11, 20, 21, 30, 31]] * 2


def test_lost_quota_shows_at_the_end_and_full_hands_it_on(backend):
    """One run has nearly all the attention, and only four tokens."""
    attention = torch.full((1, 16), 1e-3)
    attention[0, 4:8] = torch.tensor([0.2, 0.4, 0.3, 0.1])
    released = vt.crop_topk(attention, None, 8, crops=4, sort=False)
    assert released.tolist() == [[4, 5, 6, 7, -1, -1, -1, -1]]  # a whole run in natural order
    full = vt.crop_topk(attention, None, 8, crops=4, variant="full", sort=False)
    assert full.tolist() == [[0, 1, 4, 5, 6, 7, 8, 12]]
    cut = vt.crop_topk(attention, None, 3, crops=4, sort=False)
    assert cut.tolist() == [[5, 6, 4]]  # a cut one by falling attention


@pytest.mark.parametrize("variant", ["full", "paper"])
@pytest.mark.parametrize("crops", [2, 5, 16, 20, 64])
def test_overflow_is_shared_exactly_and_nothing_is_lost(backend, variant, crops):
    for peak in (1.0, 3.0, 6.0):
        attention, features = inputs(129, 8, batch=2 if slow(backend) else 4, peak=peak, seed=crops)
        for k in (8, 40, 129):
            picks = check(attention, features, k, crops=crops, variant=variant, least=0)
            assert all(len(set(row)) == k and min(row) >= 0 for row in picks.tolist())


def test_overflow_rule_takes_many_rounds(backend):
    """What one run loses goes to one run with three times the weight of the rest, a token a round: 14 rounds for k = 82."""
    size, crops = 36, 40
    attention = 1 + torch.linspace(0, 1e-2, size * crops)[None]
    attention[0, :size] += 399
    attention[0, size : 2 * size] += 2
    for k in range(76, 84):
        check(attention, None, k, crops=crops, variant="full")


def test_full_is_released_where_no_run_overflows(backend):
    attention, features = inputs(576, 16, batch=32, peak=1.0)
    released = vt.crop_topk(attention, features, 64)
    whole = (released >= 0).all(1)
    assert whole.any()
    assert torch.equal(vt.crop_topk(attention, features, 64, variant="full")[whole], released[whole])


def test_equal_attention_takes_the_lowest_tokens(backend):
    """The quotas are rounding noise there, the tokens inside a run are not."""
    attention = torch.full((2, 64), 1 / 64)
    for variant in ("released", "full"):
        picks = vt.crop_topk(attention, None, 16, crops=4, variant=variant, sort=False)
        for row in picks.tolist():
            assert len(set(row)) == 16
            for c in range(4):
                inside = [i for i in row if i // 16 == c]
                assert inside == list(range(16 * c, 16 * c + len(inside)))
    tied = torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.1, 0.2]])
    assert vt.crop_topk(tied, None, 2, crops=1, sort=False).tolist() == [[1, 2]]


def test_features_matter_where_a_run_is_orthogonal(backend):
    """Its variance is 0, so it loses its share of beta."""
    attention = torch.full((1, 32), 1 / 32)
    features = torch.ones(1, 32, 16)
    features[0, :16] = torch.eye(16)
    counts = []
    for x in (features, None):
        picks = vt.crop_topk(attention, x, 20, crops=2, beta=1.0)
        counts.append([int((picks < 16).sum()), int((picks >= 16).sum())])
    assert counts == [[6, 14], [10, 10]]
    assert oracle_holov.answers(attention, features, 20, crops=2, beta=1.0)[0].quota == [6, 14]


@pytest.mark.parametrize("value", [0.0, NAN, INF, -INF])
def test_row_without_a_direction_is_similar_to_nothing(backend, value):
    attention, features = inputs(65, batch=6)
    features[:, 7] = value
    features[1, 9, 3] = value
    features[2, 8] = 3e38  # its squared norm overflows
    features[3, 8] = 1e-30
    for variant in VARIANTS:
        check(attention, features, 20, crops=5, variant=variant)


@each_variant
def test_negative_attention_is_none(backend, variant):
    attention, features = inputs(65, batch=6)
    negative = attention.clone()
    attention[:, ::3] = 0
    negative[:, ::3] *= -5
    want = check(attention, features, 20, crops=5, variant=variant)
    assert torch.equal(check(negative, features, 20, crops=5, variant=variant), want)


@each_variant
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_non_finite_attention_ranks_last_in_its_run(backend, variant, value):
    attention, features = inputs(64, batch=6)
    attention[:, [0, 17, 33, 34]] = value
    check(attention, features, 20, crops=4, variant=variant)
    alone = torch.tensor([[value, 0.0, 0.5, value]])
    picks = vt.crop_topk(alone, torch.ones(1, 4, 2), 3, crops=1, variant=variant, sort=False)
    assert picks.tolist() == [[2, 1, 0]]


@each_variant
@pytest.mark.parametrize("value", [NAN, -1.0, 3e38])
def test_hopeless_attention_still_gives_distinct_tokens(backend, variant, value):
    picks = vt.crop_topk(torch.full((2, 33), value), torch.ones(2, 33, 4), 20, crops=4, variant=variant)
    for row in picks.tolist():
        chosen = [i for i in row if i >= 0]
        assert len(set(chosen)) == len(chosen) == (20 if variant != "released" else len(chosen))
        assert all(0 <= i < 33 for i in chosen)


@each_int
@each_variant
def test_lengths_cut_the_row_before_its_runs(backend, variant, int_dtype):
    attention, features = inputs(65, batch=7)
    lengths = ragged(7, 65, int_dtype)
    clean = check(attention, features, 20, crops=6, variant=variant, lengths=lengths, least=2)
    for b, length in enumerate(lengths.tolist()):
        attention[b, max(length, 0) :], features[b, max(length, 0) :] = NAN, NAN
    assert torch.equal(check(attention, features, 20, crops=6, variant=variant, lengths=lengths, least=2), clean)
    if variant != "released":
        assert (clean >= 0).sum(1).tolist() == [min(20, max(0, min(int(n), 65))) for n in lengths]


@each_dtype
@each_variant
def test_attention_and_features_may_have_different_dtypes(backend, variant, dtype):
    attention, features = inputs(65, batch=6)
    check(attention.to(dtype), features, 20, crops=4, variant=variant, least=0 if variant == "paper" else 1)
    check(attention, features.to(dtype), 20, crops=4, variant=variant)


def test_paper_shares_by_attention_whatever_the_features(backend):
    attention, features = inputs(64, batch=4)
    other = torch.randn(4, 64, 7)

    def counts(x):
        picks = vt.crop_topk(attention, x, 24, crops=4, variant="paper")
        return torch.stack([(picks // 16 == c).sum(1) for c in range(4)])

    assert torch.equal(counts(features), counts(other))
    assert not torch.equal(*(vt.crop_topk(attention, x, 24, crops=4, variant="paper") for x in (features, other)))


def test_beta_of_none_leaves_the_share_of_attention(backend):
    attention, features = inputs(64, batch=6)
    check(attention, features, 24, crops=4, beta=0.0)
    check(attention, features, 24, crops=4, beta=7.5)
