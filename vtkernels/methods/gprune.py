"""G-Prune: propagation over a graph of similar tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

from vtkernels import ops
from vtkernels.methods._base import Context, Policy, Selection


@dataclass(frozen=True)
class GPrune:
    """G-Prune: tokens that hold most, per neighbour, after their norms have flowed along the similarities.

    Works on projected features, so the selection comes after the projector. Neither attention nor the prompt is used.

    The paper and its code build the graph from cosine similarities, propagate the norms and divide by the degree. This is the
    code: similarity kept as it is from 0.5 on (the paper's best is said to be 0.7), each token's own degree. The code computes
    in half precision and raises the matrix to a power; here the state is float32 and the power a chain of vector products.

    On LLaVA-NeXT the base crop and the unpadded grid are chosen from apart, each with its share of the budget; all newline
    tokens are kept, and kept tokens have their original, gapped positions, as in the published code. On LLaVA-1.5, which that
    code cannot run, this is its base branch alone.

    Args:
        threshold: least similarity of two neighbours, in (0, 1].
        temperature: of the softmax over a token's neighbours, finite and > 0.
        iterations: steps of propagation, >= 0.

    Raises:
        ValueError: an option is out of range.
        TypeError: an option is not a number.

    Source: arXiv 2501.02268; published code jytmelon/G-Prune @ 762c637.
    """

    threshold: float = 0.5
    temperature: float = 0.03
    iterations: int = 5

    needs: ClassVar[frozenset[str]] = frozenset({"projected"})
    policy: ClassVar[Policy] = Policy(budgets=("per_branch",), positions="original")

    def __post_init__(self) -> None:
        for name, kind, takes in (("threshold", Real, "a number"), ("temperature", Real, "a number"),
                                  ("iterations", Integral, "an integer")):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise TypeError(f"GPrune: {name} must be {takes}, got {value!r}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"GPrune: threshold must be in (0, 1], got {self.threshold:g}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"GPrune: temperature must be a finite number > 0, got {self.temperature:g}")
        if self.iterations < 0:
            raise ValueError(f"GPrune: iterations must be >= 0, got {self.iterations}")

    def kept_tokens(self, keep: int | float, tokens: int, grid: tuple[int, int] | None) -> int:
        """``keep`` in tokens: ``int(fraction * tokens)``, as published, but at least one."""
        return int(keep) if isinstance(keep, Integral) else max(1, int(keep * tokens))

    def select(self, context: Context, k: int) -> Selection:
        """Scores are what the tokens hold, over their degree."""
        assert context.projected is not None  # among the needs
        scores, _ = ops.graph_propagate(
            context.projected, threshold=self.threshold, temperature=self.temperature, iterations=self.iterations
        )
        return Selection(ops.topk_select(scores, k), scores)
