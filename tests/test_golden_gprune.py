"""graph_propagate scores, and topk_select keeps, what the published G-Prune scores and keeps."""

import pytest
import torch
from golden import GPRUNE_CASES, gprune_case

import vtkernels as vt
from vtkernels.methods import Context, GPrune

OP = "graph_propagate"
SCORE = 1e-4  # relative; the published float32 matrix power is off by up to 1.2e-5 itself
MARGIN = 2e-6  # closer to the threshold than this, rounding decides an edge
GAP = 3e-5  # closer to each other than this (relative), rounding decides which token is kept


def same_kept(kept, branch):
    """The published set, but for swaps of tokens that are as good as tied with the last one kept."""
    swapped = kept ^ branch.kept
    if branch.gap > GAP:
        assert not swapped
    last = branch.scores.sort(descending=True).values[branch.k - 1]
    for token in swapped:
        assert abs(branch.scores[token] / last - 1) <= GAP, f"token {token}"


def test_cases_are_there():
    assert len(GPRUNE_CASES) == 12


# 1,728 tokens, a minute in Triton's interpreter
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.large if "36x48" in name else ()) for name in GPRUNE_CASES]
)
def test_published_scores_and_sets(backend, name):
    case = gprune_case(name)
    positions = [case.newlines]
    for branch in case.branches:
        scores, degree = vt.graph_propagate(branch.features, **case.options)
        torch.testing.assert_close(scores[0].double(), branch.scores, rtol=SCORE, atol=0)
        off = (degree[0] - branch.degree).abs()
        assert off.max() <= (1 if branch.margin <= MARGIN else 0) and off.sum() <= 2
        kept = vt.topk_select(scores, branch.k)[0]
        assert len(kept) == len(branch.kept)
        same_kept(set(kept.tolist()), branch)
        positions.append(branch.positions[kept])
    ours = torch.cat(positions).sort().values
    if all(branch.gap > GAP for branch in case.branches):
        assert ours.equal(case.kept)
    assert len(ours) == len(case.kept)


def test_published_ratio(backend):
    """The method on the base branch alone, as on LLaVA-1.5, with the published budget of a half."""
    case = gprune_case("gprune_r24x24_d1024_fp16in")
    branch = case.branches[0]
    method = GPrune(**case.options)
    k = method.kept_tokens(0.5, 576, (24, 24))
    assert k == branch.k == 288
    selection = method.select(Context(1, 576, torch.device("cpu"), (24, 24), projected=branch.features), k)
    assert set(selection.indices[0].tolist()) == branch.kept
