"""What a method is: the captures it asks for, what it is given, what it answers."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Context:
    """What a method sees of B images with N candidate tokens each. A capture that was not asked for is None.

    Attributes:
        batch: B.
        tokens: N, candidates per image. A class token is never a candidate.
        device: where the indices are wanted.
        grid: rows and columns of the patch grid, token n at ``divmod(n, columns)``; None where the candidates do not fill it.
        features: [B, N, D] before the projector (``"features"``).
        projected: [B, N, D'] after the projector (``"projected"``).
        query: [B, H, d] query of the class token in the layer whose output is the feature layer (``"class_attention"``).
        queries: [B, H, T, d] queries of all tokens of that layer (``"attention_profile"``).
        key: [B, H, T, d] keys of all tokens of that layer (``"class_attention"``, ``"attention_profile"``).
        prefix: tokens at the front of ``key`` that are no candidates (the class token), T = prefix + N.
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
    prompt: Tensor | None = None
    prompt_ids: Tensor | None = None
    prompt_lengths: Tensor | None = None


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

    ``needs`` names captures: ``"features"``, ``"projected"``, ``"class_attention"``, ``"attention_profile"``, ``"prompt"``.

    A method may have a third, ``kept_tokens(keep, tokens, grid) -> int``: how many of ``tokens`` candidates it keeps of a
    ``keep`` that is in range, with ValueError where it cannot keep that many. Without it an int is itself, and a fraction is
    rounded to the nearest, at least 1. One that needs the prompt may have ``special_ids``, the token ids that are no text;
    without it, or where it is None, those are the model's padding, start and end tokens.
    """

    @property
    def needs(self) -> Set[str]: ...

    def select(self, context: Context, k: int) -> Selection:
        """Keep ``k`` of the N candidates of each image. Runs without autograd and must not read tensors back to the host."""
        ...
