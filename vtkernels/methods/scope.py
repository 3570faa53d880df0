"""SCOPE: saliency-weighted coverage of the visual tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vtkernels import ops
from vtkernels.methods._base import Context, Policy, Selection


@dataclass(frozen=True)
class Scope:
    """SCOPE: tokens that cover the image's features and that the class token attends to.

    Saliency is the attention of the class token in the layer whose output is the feature layer, summed over heads (without a
    class token: attention received); features are taken before the projector. The prompt is not used.

    On LLaVA-NeXT every crop is chosen from on its own, padding included, and newline tokens are dropped, as in the published
    code; its budget is an equal share rounded down, here the first crops take the remainder.

    Args:
        alpha: exponent of the saliency, finite and >= 0 (0: coverage alone).
        combine: ``"multiply"`` coverage gain and saliency (published ``multi``) or ``"add"`` them (published ``add``).

    Raises:
        ValueError: ``alpha`` or ``combine`` is none of these.

    Source: arXiv 2510.24214; published code kinredon/SCOPE @ 6bf7306. Its budget is split over everything in one tower call;
    here it is per image.
    """

    alpha: float = 1.0
    combine: str = "multiply"

    needs: ClassVar[frozenset[str]] = frozenset({"features", "saliency"})
    policy: ClassVar[Policy] = Policy(newlines="drop", padding="include")

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and self.alpha >= 0):
            raise ValueError(f"Scope: alpha must be a finite number >= 0, got {self.alpha:g}")
        if self.combine not in ("multiply", "add"):
            raise ValueError(f"Scope: combine must be 'multiply' or 'add', got {self.combine!r}")

    def select(self, context: Context, k: int) -> Selection:
        """Scores are the saliency."""
        assert context.features is not None  # among the needs
        saliency = context.saliency(reduce="sum")
        indices = ops.scope_select(context.features, saliency, k, alpha=self.alpha, combine=self.combine)
        return Selection(indices, saliency)
