"""What a prefill kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Record:
    """What one prefill kept, one entry per image in the order of the images; videos follow the images.

    Attributes:
        indices: int64 [k], kept candidates, ascending. With several crops (or frames) of P patches, patch p of crop c is
            ``c * P + p``, the base crop first. On LLaVA-OneVision, which pools the tiles of an image, candidates are counted
            in the order of the prompt. Class tokens and newlines are not counted.
        scores: float32 [N] over all candidates, NaN for a patch that could not be kept (padding, or a crop without a share);
            None where the method has none.
        newlines: newline tokens kept (0 on models without them).
        tokens_before: visual tokens in the prompt.
        tokens_after: visual tokens that the language model saw.
    """

    indices: list[Tensor] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)
    newlines: list[int] = field(default_factory=list)
    tokens_before: list[int] = field(default_factory=list)
    tokens_after: list[int] = field(default_factory=list)
