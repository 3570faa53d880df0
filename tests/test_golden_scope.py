"""scope_select keeps what the published SCOPE keeps."""

import pytest
import torch
from cases import fixed_order
from golden import SCOPE_CASES, scope_case, scope_edges
from oracles import check_selection, scope_problems

import vtkernels as vt

OP = "scope_select"
# Where the package differs on purpose: there one zero row turns every gain into NaN, and a NaN saliency is taken first.
MENDED = ("zero_norm_token20_k8", "nan_attn_token5_k4")


def test_cases_are_there():
    assert len(SCOPE_CASES) == 12


@pytest.mark.parametrize("name", SCOPE_CASES)
def test_published_picks(backend, name):
    """Equal as far as float32 decides; after that each pick must be right along the op's own picks."""
    case = scope_case(name)
    options = {"alpha": case.alpha, "combine": case.combine}
    picks = vt.scope_select(case.features, case.saliency, case.k, sort=False, **options)
    for got, want, safe in zip(picks, case.picks, case.safe, strict=True):
        assert got[:safe].tolist() == want[:safe].tolist()
    problems = scope_problems(case.features, case.saliency, fixed_order=fixed_order(backend), **options)
    check_selection(problems, picks)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.large if "576" in name else ()) for name in SCOPE_CASES])
def test_published_set(backend, name):
    """What a model sees is the sorted set: equal wherever every step is safe. Slow backends: the small
    ones, since the picks of all sizes are held above."""
    case = scope_case(name)
    kept = vt.scope_select(case.features, case.saliency, case.k, alpha=case.alpha, combine=case.combine)
    for got, want, safe in zip(kept, case.picks, case.safe, strict=True):
        assert len(set(got.tolist()) & set(want.tolist())) >= safe
        assert safe < case.k or got.tolist() == want.sort().values.tolist()


@pytest.mark.parametrize("name", scope_edges()[0])
def test_edge_cases(backend, name):
    inputs, published = scope_edges()
    features, saliency, k = inputs[name]
    picks = vt.scope_select(features, saliency, k, sort=False)
    if name not in MENDED:
        assert picks.tolist() == [published[name]]
    check_selection(scope_problems(features, saliency, fixed_order=fixed_order(backend)), picks)


def test_zero_row_is_mended(backend):
    features, saliency, k = scope_edges()[0]["zero_norm_token20_k8"]
    picks = vt.scope_select(features, saliency, 49, sort=False)[0].tolist()
    assert picks[:k] != list(range(k))
    assert picks[-1] == 20


def test_nan_saliency_is_mended(backend):
    inputs, published = scope_edges()
    features, saliency, k = inputs["nan_attn_token5_k4"]
    picks = vt.scope_select(features, saliency, 49, sort=False)[0].tolist()
    assert published["nan_attn_token5_k4"][0] == 5
    assert picks[: k - 1] == published["nan_attn_token5_k4"][1:]
    assert picks[-1] == 5


def test_published_run_on_rounded_inputs_is_computed_in_float32(backend):
    """The same picks from float16 features as from their float32 copy, unlike half arithmetic."""
    case = scope_case("scope_c576_d1024_k64_fp16")
    assert case.features.dtype == torch.float16
    half = vt.scope_select(case.features, case.saliency, case.k, sort=False)
    assert torch.equal(half, vt.scope_select(case.features.float(), case.saliency, case.k, sort=False))
    assert half.tolist() == case.picks.tolist()
