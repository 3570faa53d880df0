"""Pruning as a serving engine needs it. Nothing here knows an engine.

An engine reserves cache and schedules a prompt before the encoder has seen its images. So the number of tokens that are left
must follow from sizes alone (:meth:`Plan.tokens`), and what is chosen must not depend on which requests share a batch
(:meth:`Plan.prune`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import vtkernels as vt
from vtkernels.integrations.transformers.budget import tokens_to_keep

# PAR is not among them: what it keeps depends on the prompt, and the caches of an engine know an image by its pixels alone.
METHODS = {
    "scope": vt.Scope,
    "fopru": vt.FoPru,
    "gprune": vt.GPrune,
    "holov": vt.HoloV,
    "topattention": vt.TopAttention,
    "random": vt.Random,
    "uniform": vt.Uniform,
}
ATTENTION = frozenset({"saliency", "class_attention", "attention_profile"})


@dataclass(frozen=True)
class Plan:
    """A method, and how many patch tokens it keeps of every image: a number, or a fraction of them."""

    method: vt.Method
    keep: int | float

    @classmethod
    def from_config(cls, config: Any) -> Plan:
        """The plan in a model's config: ``vtkernels_method``, a name, and ``vtkernels_keep``; engines let a user add both.

        Raises:
            ValueError: one of them is missing, or there is no such method.
        """
        name, keep = (getattr(config, f"vtkernels_{option}", None) for option in ("method", "keep"))
        if name not in METHODS or keep is None:
            raise ValueError(
                f"the model's config must have vtkernels_method, one of {', '.join(METHODS)}, and vtkernels_keep, a number of "
                f"tokens or a fraction; got {name!r} and {keep!r}"
            )
        return cls(METHODS[name](), keep)

    @property
    def needs_attention(self) -> bool:
        """Whether :meth:`prune` takes queries and keys."""
        return not ATTENTION.isdisjoint(self.method.needs)

    @property
    def key(self) -> str:
        """Tells plans apart: two processes that share a cache of images must not take each other's pruned ones."""
        return hashlib.sha256(f"vtkernels {vt.__version__} {self}".encode()).hexdigest()[:16]

    def tokens(self, patches: int, grid: tuple[int, int] | None = None) -> int:
        """How many of ``patches`` tokens are left. A function of its arguments alone: no image, no tensor.

        Args:
            patches: of an image.
            grid: rows and columns of them, where the method keeps whole rows.
        """
        return tokens_to_keep(self.method, self.keep, patches, grid)

    @torch.no_grad()
    def prune(
        self,
        features: Tensor,
        projector: Callable[[Tensor], Tensor],
        query: Tensor | None = None,
        key: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Choose and project. What is kept of an image has the same bits in every batch.

        Args:
            features: [B, N, D], the patches of B images, without class token.
            projector: to the language model's width, token by token; runs on the kept tokens alone where the method allows it.
            query: [B, H, 1 + N, d], where :attr:`needs_attention`: of the layer whose output ``features`` is, the class token
                first.
            key: likewise.
            grid: as for :meth:`tokens`.

        Returns:
            [B, K, D'] projected tokens and int64 [B, K] which patches they are, ascending.
        """
        batch, patches, _ = features.shape
        projected = projector(features) if "projected" in self.method.needs else None
        context = vt.Context(
            batch=batch,
            tokens=patches,
            device=features.device,
            grid=grid,
            features=features,
            projected=projected,
            query=None if query is None else query[:, :, 0],
            queries=query,
            key=key,
            prefix=1,
        )
        indices = self.method.select(context, self.tokens(patches, grid)).indices
        if projected is None:
            return projector(vt.gather_tokens(features, indices)), indices
        return vt.gather_tokens(projected, indices), indices
