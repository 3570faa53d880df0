"""crop_topk keeps what the published HoloV keeps.

Rows are compared where the stored margins exceed what float32 rounding moves (quota 1e-4, weights 1e-6, attention 1e-9). Among
equal attention the published order is torch's, here it is the lowest index.
"""

import pytest
import torch
from golden import HOLOV_CASES, holov_case

import vtkernels as vt
from vtkernels.methods import Context, HoloV

OP = "crop_topk"


def test_cases_are_there():
    cases = [holov_case(name) for name in HOLOV_CASES]
    assert len(cases) == 10
    assert all(all(case.strict) for case in cases)
    assert sum(any(case.needs_features) for case in cases) == 1
    assert sum(bool((case.picks < 0).any()) for case in cases) == 4


@pytest.mark.parametrize("name", HOLOV_CASES)
def test_published_picks_in_published_order(backend, name):
    case = holov_case(name)
    picks = vt.crop_topk(case.attention, case.features, case.k, crops=case.crops, sort=False)
    assert picks.tolist() == case.picks.tolist()


@pytest.mark.parametrize("name", HOLOV_CASES)
def test_attention_alone_decides_the_same(backend, name):
    """Except where a run is orthogonal in itself: the finding that makes features optional."""
    case = holov_case(name)
    picks = vt.crop_topk(case.attention, None, case.k, crops=case.crops, sort=False)
    for got, want, needed in zip(picks, case.picks, case.needs_features, strict=True):
        assert got.equal(want) != needed


@pytest.mark.parametrize("name", HOLOV_CASES)
def test_full_adds_to_the_published_picks_what_they_lack(backend, name):
    case = holov_case(name)
    full = vt.crop_topk(case.attention, case.features, case.k, crops=case.crops, variant="full")
    for got, want in zip(full.tolist(), case.picks.tolist(), strict=True):
        kept = {i for i in want if i >= 0}
        assert len(set(got)) == case.k and min(got) >= 0
        assert kept <= set(got)
        assert len(kept) < case.k or got == sorted(want)


@pytest.mark.parametrize("variant", ["released", "full", "paper"])
@pytest.mark.parametrize(("k", "crops"), [(64, 16), (128, 8), (192, 5)])
def test_zero_attention_gives_each_run_one(backend, variant, k, crops):
    """As published (its golden case: one token per run, the rest zero rows); full and paper share the rest by room."""
    picks = vt.crop_topk(torch.zeros(1, 576), torch.ones(1, 576, 4), k, crops=crops, variant=variant)
    assert (picks >= 0).sum() == (crops if variant == "released" else k)


@pytest.mark.parametrize(
    ("tokens", "k", "crops"), [(576, 64, 16), (576, 128, 8), (576, 192, 5), (2880, 320, 16), (576, 576, 1), (9, 9, 1)]
)
def test_crops_of_the_method_are_those_of_the_paper(tokens, k, crops):
    torch.manual_seed(0)
    query, key, projected = torch.randn(2, 2, 8), torch.randn(2, 2, tokens + 1, 8), torch.randn(2, tokens, 16)
    context = Context(2, tokens, torch.device("cpu"), projected=projected, query=query, key=key, prefix=1)
    attention = vt.cls_attention(query, key)
    selection = HoloV().select(context, k)
    assert selection.scores.equal(attention)
    assert selection.indices.equal(vt.crop_topk(attention, projected, k, crops=crops, variant="full"))
    fixed = HoloV(crops=16, variant="released").select(context, k)
    assert fixed.indices.equal(vt.crop_topk(attention, projected, k, crops=16))
    paper = HoloV(variant="paper").select(context, k)
    assert paper.indices.equal(vt.crop_topk(attention, projected, k, crops=crops, variant="paper"))
