"""What the model-level benchmark puts between tower and language model: our methods, and the published loops in their place.

The latter are methods of a user's own, so the model around them, the shares of crops and the gather are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

import vtkernels as vt
from vtkernels.methods import Context, Policy, Selection

from . import published
from .harness import SAME, Results, compared, same_picks


class _Published:
    """A published computation as a method; ``twin`` is the method of ours that makes the same choice."""

    twin: ClassVar[Any]
    needs: ClassVar[frozenset[str]]
    policy: ClassVar[Policy]

    def select(self, context: Context, k: int) -> Selection:
        with torch.device(context.device):
            picks = self.choose(context, k)
        last = picks.masked_fill(picks < 0, context.tokens).sort(dim=1).values  # a lost token goes to the end
        return Selection(last.masked_fill(last == context.tokens, -1))

    def choose(self, context: Context, k: int) -> Tensor:
        raise NotImplementedError


def _saliency(context: Context) -> Tensor:
    """From the full map of one layer. The published code has all layers return theirs, and gives up fused attention for it."""
    assert context.queries is not None and context.key is not None  # among the needs
    saliency = published.cls_attention(context.queries, context.key)
    return saliency if context.arrange is None else context.arrange(saliency)


class PublishedScope(_Published):
    """SCOPE: full attention map, Gram matrix, k greedy steps."""

    twin = vt.Scope()
    needs = frozenset({"features", "attention_profile"})
    policy = vt.Scope.policy

    def choose(self, context: Context, k: int) -> Tensor:
        assert context.features is not None  # among the needs
        return published.scope(context.features, _saliency(context), k)


class PublishedHoloV(_Published):
    """HoloV's released code, 16 runs whatever k: full attention map, then image by image and run by run."""

    twin = vt.HoloV(crops=16, variant="released")
    needs = frozenset({"projected", "attention_profile"})
    policy = vt.HoloV.policy

    def choose(self, context: Context, k: int) -> Tensor:
        assert context.projected is not None  # among the needs
        return published.holov(context.projected, _saliency(context), k)


class PublishedGPrune(_Published):
    """G-Prune: Gram matrix, softmax, matrix power, top-k."""

    twin = vt.GPrune()
    needs = vt.GPrune.needs
    policy = vt.GPrune.policy

    def choose(self, context: Context, k: int) -> Tensor:
        assert context.projected is not None  # among the needs
        return published.graph_propagate(context.projected).topk(k).indices


class PublishedFoPru(_Published):
    """FoPru as the paper's words are read here: full map after the softmax, means of columns or rows, top-k."""

    twin = vt.FoPru()
    needs = vt.FoPru.needs
    policy = vt.FoPru.policy

    def choose(self, context: Context, k: int) -> Tensor:
        assert context.queries is not None and context.key is not None  # among the needs
        received, given = published.attention_profile(context.queries, context.key)
        if context.arrange is not None:
            received, given = context.arrange(received), context.arrange(given)
        columns = received.var(1, correction=0, keepdim=True) >= given.var(1, correction=0, keepdim=True)
        return torch.where(columns, received, given).topk(k).indices


PUBLISHED = {"Scope": PublishedScope, "FoPru": PublishedFoPru, "GPrune": PublishedGPrune, "HoloV": PublishedHoloV}
LOOP = "{} (published loop)"  # their names in the results


def methods(names: Sequence[str], seed: int) -> dict[str, Any]:
    """Name in the results -> method: each method asked for, and behind it its published loop where there is one."""
    made: dict[str, Any] = {}
    for name in names:
        made[name] = vt.Random(seed) if name == "Random" else getattr(vt, name)()
        if name in PUBLISHED:
            made[LOOP.format(name)] = PUBLISHED[name]()
    return made


@dataclass(frozen=True)
class Gate:
    """Methods of one way to share the budget, as one: each choice is compared on the very captures it will be timed on.

    Ours against ``vtkernels.reference``; a published loop, on float32 copies because it rounds as it goes, against ours. At
    most 2% of the picks may differ (float ties). ``verdicts``: what each comparison gave, filled by a call of the model.
    """

    members: dict[str, Any]
    budget: str
    verdicts: dict[str, str] = field(default_factory=dict)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(method.needs for method in self.members.values()))

    @property
    def policy(self) -> Policy:
        return Policy(budgets=(self.budget,))

    def select(self, context: Context, k: int) -> Selection:
        for name, method in self.members.items():
            if isinstance(method, _Published):
                exact = in_float32(context)
                got, want = method.select(exact, k), method.twin.select(exact, k)
            else:
                with vt.backend("reference"):
                    want = method.select(context, k)
                got = method.select(context, k)
            agree = partial(_same, allowed=0.02)
            verdict = compared(agree, (got.indices,), (want.indices,))
            if self.verdicts.get(name, SAME) == SAME:  # one of several calls is enough
                self.verdicts[name] = verdict
        return vt.Uniform().select(context, k)


def _same(got: Results, want: Results, *, allowed: float) -> None:
    same_picks(got[0], want[0], allowed)


def gates(members: dict[str, Any]) -> list[Gate]:
    """The methods, one :class:`Gate` for each way to share a budget over crops."""
    groups: dict[str, dict[str, Any]] = {}
    for name, method in members.items():
        groups.setdefault(getattr(method, "policy", Policy()).budgets[0], {})[name] = method
    return [Gate(group, budget) for budget, group in groups.items()]


def in_float32(context: Context) -> Context:
    """The context with every capture in float32."""
    captures = {entry.name: getattr(context, entry.name) for entry in fields(context)}
    exact: dict[str, Any] = {name: x.float() for name, x in captures.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return replace(context, **exact)
