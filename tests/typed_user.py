"""Code of a user, which `make lint` checks under mypy --strict: what py.typed promises. test_typing.py runs it.

An error that must be reported has a ``type: ignore`` of its own; strict mode refuses one that ignores nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import vtkernels as vt


@dataclass(frozen=True)
class Strongest:
    """A method of one's own: the tokens of greatest norm."""

    needs: ClassVar[frozenset[str]] = frozenset({"features"})

    def select(self, context: vt.Context, k: int) -> vt.Selection:
        if context.features is None:
            raise ValueError("features are among the needs")
        norms: Tensor = context.features.float().norm(dim=-1)
        return vt.Selection(vt.topk_select(norms, k), norms)


class Unfinished:
    needs = frozenset({"features"})


def ops(features: Tensor, saliency: Tensor) -> None:
    assert_type(vt.scope_select(features, saliency, k=2, alpha=0.5, combine="add"), Tensor)
    assert_type(vt.scope_select(features, None, 2, out=torch.empty(1, 2, dtype=torch.int64)), Tensor)
    assert_type(vt.coverage_select(features @ features.transpose(1, 2), saliency, 2), tuple[Tensor, Tensor])
    assert_type(vt.reference.topk_select(saliency, 2), Tensor)
    assert_type(vt.which("topk_select"), str)
    assert_type(vt.status("native").available, bool)
    with vt.backend("reference") as chosen:
        assert_type(chosen, vt.backend)


def mistakes(features: Tensor, saliency: Tensor, model: nn.Module) -> None:
    vt.scope_select(features, saliency, k=0.5)  # type: ignore[arg-type]
    vt.scope_select(features, saliency)  # type: ignore[call-arg]
    vt.topk_select(saliency, 2, largest=True)  # type: ignore[call-arg]
    vt.coverage_select(features, None, 2, out=features)  # type: ignore[call-arg]
    vt.Scope(alpha="1")  # type: ignore[arg-type]
    vt.prune(model, Unfinished(), keep=64)  # type: ignore[arg-type]
    vt.prune(model, vt.Scope(), keep="64")  # type: ignore[arg-type]


def pruned(model: nn.Module) -> None:
    with vt.prune(model, Strongest(), keep=0.5, positions="original") as pruning, pruning.measure() as calls:
        assert_type(pruning, vt.Pruning)
        assert_type(pruning.last.indices, list[Tensor])
        assert_type(pruning.last.scores, list[Tensor | None])
        assert_type(pruning.stats, vt.Stats | None)
        assert_type(calls, list[vt.Stats])
    own: list[vt.Method] = [vt.Scope(), vt.FoPru(), vt.GPrune(), vt.HoloV(), vt.PAR(), vt.TopAttention(), vt.Random()]
    for method in own:
        vt.prune(model, method, 4).remove()
