"""Every native op of this build against its definition in plain PyTorch, and without graph breaks under torch.compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from kernels import get_local_kernel

vtkernels = get_local_kernel(Path(__file__).parents[1])
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.kernels_ci


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def calls():
    features, query, key = draw(2, 65, 24), draw(2, 3, 16), draw(2, 3, 66, 16)
    scores, labels = draw(2, 65), torch.arange(65).expand(2, 65).contiguous().to(DEVICE) // 5 * 5
    indices = torch.arange(0, 64, 8).expand(2, 8).contiguous().to(DEVICE)
    yield "scope_select", (features, scores.abs(), 16), {}
    yield "coverage_select", (features @ features.mT, scores.abs(), 16), {}
    yield "graph_propagate", (features,), {}
    yield "cls_attention", (query, key), {}
    yield "attention_profile", (key, key), {}
    yield "topk_select", (scores, 16), {}
    yield "attention_topk", (query, key, 16), {}
    yield "row_topk", (scores, 3), {"width": 13}
    yield "crop_topk", (scores.softmax(1), features, 16), {"crops": 4}
    yield "token_clusters", (features,), {"threshold": 0.3}
    yield "prompt_relevance", (features, features[:, :7]), {}
    yield "cluster_topk", (labels, scores, 16), {}
    yield "route_tokens", (features, indices), {}
    yield "merge_tokens", (features, indices, labels % 8), {}
    yield "gather_tokens", (features, indices), {}


@pytest.mark.parametrize(("op", "args", "options"), list(calls()), ids=[call[0] for call in calls()])
def test_op_agrees_with_its_definition(op, args, options):
    got, wanted = getattr(vtkernels, op)(*args, **options), getattr(vtkernels.reference, op)(*args, **options)
    torch.testing.assert_close(got, wanted)


def test_rows_move_in_place():
    tokens, indices = draw(2, 65, 24), torch.tensor([[1, 5, 64], [0, 2, -1]], device=DEVICE)
    wanted = vtkernels.gather_tokens(tokens, indices)
    vtkernels.compact_(tokens, indices)
    assert torch.equal(tokens[:, :3], wanted)


def test_every_public_op_is_called_here():
    public = set(vtkernels.__all__) - {"backend", "reference", "status", "which"}
    assert public == {call[0] for call in calls()} | {"compact_"}


def test_ops_run_natively():
    assert vtkernels.which("scope_select", DEVICE) == "native"


def test_compiles_without_graph_breaks():
    def prune(features, saliency):
        return vtkernels.gather_tokens(features, vtkernels.scope_select(features, saliency, 16))

    features, saliency = draw(2, 65, 24), draw(2, 65).abs()
    compiled = torch.compile(prune, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(features, saliency), prune(features, saliency))
