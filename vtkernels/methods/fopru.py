"""FoPru: tokens, or whole image rows, by the attention they receive or give inside the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from vtkernels import ops
from vtkernels.methods._base import Context, Policy, Selection


@dataclass(frozen=True)
class FoPru:
    """FoPru: the tokens that stand out in the attention map of the layer whose output is the feature layer.

    The map is averaged over heads and loses its class token. Significance is what each token receives (column mean) or what
    it gives (row mean), per image whichever varies more (equal: received). The prompt is not used. The paper is silent on
    LLaVA-NeXT: here every crop is chosen from on its own, padding included, and newline tokens are dropped.

    The paper speaks of attention, of a choice between tokens and rows, and of tokens put back in their order. The nearest
    published code hands over the scaled logits before the softmax. ``source="softmax"`` is our reading of the paper's words,
    ``source="logits"`` what that code does; its text confirms neither.

    Args:
        strategy: ``"rank"`` keeps the tokens of greatest significance, ``"row"`` the image rows whose significance adds up to
            most: a multiple of the grid's width. Of a fraction, ``"rank"`` keeps ``floor(tokens * fraction)`` tokens and
            ``"row"`` ``floor(rows * fraction)`` rows, as published, but at least one.
        source: ``"softmax"`` (over all tokens, the class token included; not renormalised without it) or ``"logits"``.

    Raises:
        ValueError: ``strategy`` or ``source`` is none of these.

    Source: arXiv 2411.14164. The authors published no code; dongxianzhe/hydrainfer @ d4d5f4f shares authors with the paper.
    Its function for rows fails on every input; ``"row"`` follows its class, which works.
    """

    strategy: str = "rank"
    source: str = "softmax"

    needs: ClassVar[frozenset[str]] = frozenset({"attention_profile"})
    policy: ClassVar[Policy] = Policy(newlines="drop", padding="include")

    def __post_init__(self) -> None:
        for name, choices in (("strategy", ("rank", "row")), ("source", ("softmax", "logits"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"FoPru: {name} must be {choices[0]!r} or {choices[1]!r}, got {getattr(self, name)!r}")

    def kept_tokens(self, keep: int | float, tokens: int, grid: tuple[int, int] | None) -> int:
        """``keep`` in tokens.

        Raises:
            ValueError: strategy ``"row"`` and there is no grid, or ``keep`` does not fill whole rows.
        """
        if self.strategy == "rank":
            return int(keep) if isinstance(keep, Integral) else max(1, int(tokens * keep))
        if grid is None:
            raise ValueError(
                "FoPru: strategy 'row' needs candidates that fill a grid of patches; use FoPru(strategy='rank'), or, where an "
                "image has several crops, its own budget = 'per_crop' and padding = 'include'"
            )
        rows, width = grid
        if not isinstance(keep, Integral):
            return max(1, int(rows * keep)) * width
        if keep % width:
            low = max(keep // width, 1) * width
            nearest = " or ".join(str(count) for count in sorted({low, min(low + width, tokens)}))
            raise ValueError(f"FoPru: strategy 'row' keeps whole rows of {width} tokens, got keep = {keep}; take {nearest}")
        return int(keep)

    def step(self, grid: tuple[int, int]) -> int:
        """A crop keeps whole rows too."""
        return 1 if self.strategy == "rank" else grid[1]

    def select(self, context: Context, k: int) -> Selection:
        """Scores are the significance."""
        received, given = context.attention_profile(softmax=self.source == "softmax")
        significance = torch.where(_variance(received) >= _variance(given), received, given)
        if self.strategy == "rank":
            return Selection(ops.topk_select(significance, k), significance)
        k = self.kept_tokens(k, context.tokens, context.grid)
        assert context.grid is not None  # kept_tokens refuses candidates without a grid
        width = context.grid[1]
        return Selection(ops.row_topk(significance, k // width, width=width), significance)


def _variance(x: Tensor) -> Tensor:
    """[B, 1], over the finite entries of each row: one bad token does not decide for its image."""
    finite = x.isfinite()
    count = finite.sum(1, keepdim=True).clamp_min(1)
    x = x.double().masked_fill(~finite, 0)
    return (x - x.sum(1, keepdim=True) / count).masked_fill(~finite, 0).square().sum(1, keepdim=True) / count
