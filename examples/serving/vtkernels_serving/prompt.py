"""The prompt around pruned images: placeholders, positions, and the part of an image that a chunk of the prefill takes.

The adapters need none of it, for their engines do it themselves. It is what an engine of your own has to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def shorten(ids: Sequence[int], placeholder: int, before: Sequence[int], after: Sequence[int]) -> list[int]:
    """``ids`` with ``after[i]`` placeholders where image i had ``before[i]``. Images may stand side by side.

    Raises:
        ValueError: the placeholders are not those of the images.
    """
    shortened: list[int] = []
    image = at = 0
    while at < len(ids):
        if ids[at] != placeholder:
            shortened.append(ids[at])
            at += 1
            continue
        if image == len(before) or list(ids[at : at + before[image]]) != [placeholder] * before[image]:
            raise ValueError(f"the placeholders from {at} on are not those of images with {list(before)} tokens")
        shortened += [placeholder] * after[image]
        at += before[image]
        image += 1
    if image != len(before):
        raise ValueError(f"the prompt has placeholders of {image} images, but {len(before)} were given")
    return shortened


def positions_after(positions: Tensor, starts: Sequence[int], sizes: Sequence[int], indices: Sequence[Tensor]) -> Tensor:
    """Positions [P, L] of a whole prompt, gathered for the shortened one: P is 1 for RoPE, 3 for M-RoPE.

    Kept tokens have the positions that they had, with gaps, and so has the text behind them.

    Args:
        positions: [P, L].
        starts: where each image begins in the whole prompt, ascending.
        sizes: tokens of each image in the whole prompt.
        indices: int64 [K], ascending, which of them were kept.
    """
    kept, at = [], 0
    for start, size, chosen in zip(starts, sizes, indices, strict=True):
        kept += [torch.arange(at, start, device=positions.device), start + chosen]
        at = start + size
    kept.append(torch.arange(at, positions.shape[1], device=positions.device))
    return positions[:, torch.cat(kept)]


def in_chunk(offset: int, tokens: int, begin: int, end: int) -> slice:
    """Which of the ``tokens`` embeddings of an image at ``offset`` of the shortened prompt lie in [begin, end) of it."""
    return slice(min(max(begin - offset, 0), tokens), min(max(end - offset, 0), tokens))
