"""What a method is: the captures it asks for, what it is given, what it answers."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vtkernels import ops


@dataclass(frozen=True)
class Context:
    """What a method sees of B sets of N candidate tokens each. A capture that was not asked for is None.

    A set is what shares a budget: an image, a crop, a frame, or several of them together (see :class:`Policy`).

    Attributes:
        batch: B.
        tokens: N, candidates per image. A class token is never a candidate.
        device: where the indices are wanted.
        grid: rows and columns of the patch grid, token n at ``divmod(n, columns)``; None where the candidates do not fill it.
        features: [B, N, D] before the projector (``"features"``).
        projected: [B, N, D'] after the projector (``"projected"``).
        query: [C, H, d] query of the class token in the layer whose output is the feature layer (``"class_attention"``, and
            ``"saliency"`` where the tower has a class token).
        queries: [C, H, T, d] queries of all tokens of that layer (``"attention_profile"``, and ``"saliency"`` where the tower
            has no class token).
        key: [C, H, T, d] keys of all tokens of that layer (with either of the two).
        prefix: tokens at the front of ``key`` that are no patches (the class token).
        arrange: None where each set is one call of the tower: then C = B and T = prefix + N. Otherwise the function that takes
            a score [C, T - prefix] of the patches to [B, N] of the candidates (joined, unpadded or pooled).
        prompt: [B, L, D'] the text of each image's row as input embeddings of the language model (``"prompt"``).
        prompt_ids: int64 [B, L] the ids of that text, a padding id behind the length (``"prompt"``).
        prompt_lengths: int64 [B] (``"prompt"``), at least 1.
    """

    batch: int
    tokens: int
    device: torch.device
    grid: tuple[int, int] | None = None
    features: Tensor | None = None
    projected: Tensor | None = None
    query: Tensor | None = None
    queries: Tensor | None = None
    key: Tensor | None = None
    prefix: int = 0
    arrange: Callable[[Tensor], Tensor] | None = None
    prompt: Tensor | None = None
    prompt_ids: Tensor | None = None
    prompt_lengths: Tensor | None = None

    def saliency(self, reduce: str = "mean") -> Tensor:
        """What the class token's attention gives each candidate, float32 [B, N] (needs ``"saliency"``).

        In a tower without a class token (SigLIP): the attention that the candidate receives from all tokens, mean over them.

        Args:
            reduce: over heads, ``"mean"`` or ``"sum"``.

        Raises:
            ValueError: the method's ``needs`` do not hold it.
        """
        if self.query is not None and self.key is not None:
            return self._arranged(ops.cls_attention(self.query, self.key, prefix=self.prefix, reduce=reduce))
        if self.queries is None or self.key is None:
            raise ValueError("context.saliency() has nothing to go by; put 'saliency' among the needs of the method")
        received = ops.attention_profile(self.queries, self.key, prefix=self.prefix)[0]
        return self._arranged(received * self.key.shape[1] if reduce == "sum" else received)

    def attention_profile(self, *, softmax: bool = True) -> tuple[Tensor, Tensor]:
        """What each candidate receives and gives, two float32 [B, N] (needs ``"attention_profile"``).

        Raises:
            ValueError: the method's ``needs`` do not hold it.
        """
        if self.queries is None or self.key is None:
            raise ValueError(
                "context.attention_profile() has nothing to go by; put 'attention_profile' among the needs of the method"
            )
        received, given = ops.attention_profile(self.queries, self.key, prefix=self.prefix, softmax=softmax)
        return self._arranged(received), self._arranged(given)

    def _arranged(self, scores: Tensor) -> Tensor:
        return scores if self.arrange is None else self.arrange(scores)


@dataclass(frozen=True)
class Policy:
    """What a method's source does where a model has more than one grid of patches per image, or leaves it open.

    ``vtkernels.prune`` takes these unless its arguments say otherwise.

    Attributes:
        budgets: the ways of sharing ``keep`` that the method has a meaning for, its own first. ``"per_crop"``: every crop (or
            frame) gets an equal share and is chosen from on its own; ``"joint"``: all candidates of an image are one set;
            ``"per_branch"``: the base crop and the grid of tiles are two sets, with shares in proportion to their sizes.
        positions: of kept tokens in the language model, ``"contiguous"`` or ``"original"`` (those of the whole prompt, with
            gaps).
        newlines: ``"keep"`` the newline token of every row of the grid, or ``"drop"`` them.
        padding: patches in the border that fills up the grid: ``"include"`` them among the candidates, or ``"exclude"``.
    """

    budgets: tuple[str, ...] = ("per_crop", "joint")
    positions: str = "contiguous"
    newlines: str = "keep"
    padding: str = "exclude"


@dataclass(frozen=True)
class Selection:
    """What a method answers.

    Attributes:
        indices: int64 [B, k], the kept candidates of each image, distinct and ascending.
        scores: float32 [B, N] over all candidates, or None where the method has none.
        assignment: int64 [B, N], the slot that each candidate is merged into, -1 for none; None keeps tokens as they are.
    """

    indices: Tensor
    scores: Tensor | None = None
    assignment: Tensor | None = None


@runtime_checkable
class Method(Protocol):
    """Any object with these two members is a method; nothing is registered.

    ``needs`` names captures: ``"features"``, ``"projected"``, ``"saliency"``, ``"class_attention"`` (as ``"saliency"``, but an
    error where the tower has no class token), ``"attention_profile"``, ``"prompt"``.

    It may have more:

    - ``policy``, a :class:`Policy`; without it, the defaults of that class;
    - ``kept_tokens(keep, tokens, grid) -> int``: how many of ``tokens`` candidates it keeps of a ``keep`` that is in range,
      with ValueError where it cannot keep that many. Without it an int is itself, and a fraction is rounded to the nearest, at
      least 1;
    - ``step(grid) -> int``: shares of a budget come in multiples of it (1 without it);
    - ``special_ids``, where it needs the prompt: the token ids that are no text; without it, or where it is None, those are
      the model's padding, start and end tokens.
    """

    @property
    def needs(self) -> Set[str]: ...

    def select(self, context: Context, k: int) -> Selection:
        """Keep ``k`` of the N candidates of each image. Runs without autograd and must not read tensors back to the host."""
        ...
