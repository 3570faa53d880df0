"""HoloV: a budget for every part of the image, and the most attended tokens of each."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

from vtkernels import ops
from vtkernels.methods._base import Context, Policy, Selection


@dataclass(frozen=True)
class HoloV:
    """HoloV: the token sequence is cut into runs ("crops"), the budget is shared over them, and each run keeps its best tokens.

    Attention is that of the class token in the layer whose output is the feature layer, mean over heads (without a class token:
    attention received); features are taken after the projector. The prompt is not used. On LLaVA-NeXT the base crop and the
    unpadded grid are one sequence, and newline tokens are dropped, as in the published code.

    The paper shares the budget by the mean of variance plus attention of a run, hands on what exceeds a run, and ranks tokens
    by variance plus attention. The published code computes that mix for the share alone, where variance weighs at most 9 %,
    ranks tokens by attention alone, and loses what exceeds a run: it returns zero vectors in place of the lost tokens.

    Args:
        crops: number of runs, or None for ``(1024 * N) // (576 * k)``, at least 1: the rule of the paper and of the published
            Qwen code (16 runs for 64 of 576 tokens, 5 for 192). The published LLaVA code always takes 16.
        variant: ``"full"`` is the published code with the excess handed on, so that k tokens come back (equal to it wherever it
            loses none); ``"released"`` is the published code as it is, with -1 among the indices and zero vectors at the end of
            the image's tokens for those it loses; ``"paper"`` is the text.

    Raises:
        ValueError: ``crops`` or ``variant`` is none of these.
        TypeError: ``crops`` is not an integer.

    Source: arXiv 2510.02912; published code obananas/HoloV @ 1d2e65e (half-precision head means there, float32 here). The
    refetching of pruned tokens that the paper's appendix describes is in neither.
    """

    crops: int | None = None
    variant: str = "full"

    needs: ClassVar[frozenset[str]] = frozenset({"projected", "saliency"})
    policy: ClassVar[Policy] = Policy(budgets=("joint",), newlines="drop")

    def __post_init__(self) -> None:
        if self.crops is not None:
            try:
                operator.index(self.crops)
            except TypeError:
                raise TypeError(f"HoloV: crops must be an integer or None, got {self.crops!r}") from None
            if self.crops < 1:
                raise ValueError(f"HoloV: crops must be >= 1 or None, got {self.crops}")
        if self.variant not in ("full", "released", "paper"):
            raise ValueError(f"HoloV: variant must be 'full' or 'released' or 'paper', got {self.variant!r}")

    def select(self, context: Context, k: int) -> Selection:
        """Scores are the attention."""
        attention = context.saliency()
        crops = self.crops or max(1, (1024 * context.tokens) // (576 * max(k, 1)))
        return Selection(ops.crop_topk(attention, context.projected, k, crops=crops, variant=self.variant), attention)
