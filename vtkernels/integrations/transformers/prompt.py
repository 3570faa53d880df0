"""The prompt: shortened to fewer placeholders per image with everything that runs along it, and read for its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Tensors [B, L] that follow input_ids, with what a padding column holds in each.
_FOLLOWERS = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


def shorten(
    arguments: dict[str, Any],
    *,
    name: str,
    token: int,
    before: Sequence[int],
    after: Sequence[int],
    pad: int,
) -> dict[str, Any]:
    """Cut the placeholders of image i from ``before[i]`` to its first ``after[i]``, images in the order of the prompt.

    Rows lose their padding and are padded again to the longest row, each on the side it was padded on; a row without padding
    follows the others, and goes to the left where nothing says otherwise, so that every row still ends in its last token.
    Positions are closed up. Reads the prompt back to the host once.

    Args:
        arguments: of ``forward`` or ``generate``, by name. Not changed.
        name: the entry of ``arguments`` that holds the token ids [B, L].
        token: id of a placeholder.
        before, after: placeholders per image.
        pad: id that a padding column gets.

    Returns:
        The arguments with ids, attention mask, positions, labels and token types replaced.

    Raises:
        ValueError: the placeholders do not match the images, or something that runs along the prompt cannot be shortened.
    """
    ids = arguments[name]
    if ids.dim() != 2:
        raise ValueError(f"{name} must have shape [B, L], got {list(ids.shape)}")
    placeholder = ids.cpu() == token
    _check_counts(name, token, placeholder.sum(1).tolist(), before)
    if list(before) == list(after):
        return arguments
    if isinstance(arguments.get("logits_to_keep"), Tensor):
        raise ValueError("logits_to_keep must be an int on a pruned model: positions of the full prompt no longer exist")

    keep = torch.ones_like(placeholder)
    keep[placeholder] = torch.cat([torch.arange(n) < k for n, k in zip(before, after, strict=True)])

    mask, past = arguments.get("attention_mask"), 0
    inside = torch.ones_like(placeholder)
    if mask is not None:
        if mask.dim() != 2 or mask.shape[1] < ids.shape[1]:
            raise ValueError(
                f"attention_mask must have shape [B, L] with L = {ids.shape[1]} like {name}, got {list(mask.shape)}; a "
                f"prepared mask cannot be shortened with the prompt"
            )
        past = mask.shape[1] - ids.shape[1]  # columns of what is already in the cache
        inside = _inside(mask[:, past:].cpu().ne(0))
    source = _pack(keep & inside, inside)

    rows, width = source.shape
    source = source.to(ids.device)
    padding = source < 0

    def take(x: Tensor, fill: int) -> Tensor:
        moved = x.expand(rows, -1).gather(1, source.clamp_min(0).to(x.device))
        return moved.masked_fill(padding.to(x.device), fill)

    short = dict(arguments)
    short[name] = take(ids, pad)
    for follower, fill in _FOLLOWERS.items():
        if arguments.get(follower) is not None:
            short[follower] = take(arguments[follower], fill)
    if arguments.get("position_ids") is not None:
        gap = (~keep).cumsum(1).to(arguments["position_ids"].device)
        short["position_ids"] = take(arguments["position_ids"] - gap, 0)
    if arguments.get("cache_position") is not None:
        short["cache_position"] = arguments["cache_position"][:width]
    if mask is not None:
        short["attention_mask"] = torch.cat([mask[:, :past], take(mask[:, past:], 0)], dim=1)
    elif width * rows > int((keep & inside).sum()):
        short["attention_mask"] = take(torch.ones_like(ids), 0)
    return short


@dataclass(frozen=True)
class Text:
    """What is written around each image: all text of its row.

    Attributes:
        ids: int64 [images, L], in the order of the row; a padding id behind the length.
        lengths: int64 [images].
    """

    ids: Tensor
    lengths: Tensor


def text_of_images(
    arguments: dict[str, Any],
    *,
    name: str,
    token: int,
    before: Sequence[int],
    images: int,
    special: Iterable[int],
    pad: int,
    who: str,
) -> Text:
    """The :class:`Text` of every image: the ids of its row that are neither placeholder, masked nor ``special``.

    Args:
        arguments, name, token, before, pad: as for :func:`shorten`, which has checked them.
        images: images that come with the call; the last of the prompt, where a cache holds the others.
        special: ids that are no text.
        who: the method that needs the text.

    Raises:
        ValueError: an image has no text.
    """
    ids = arguments[name].cpu()
    words = ~torch.isin(ids, torch.tensor([token, *special]))
    mask = arguments.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        words &= mask[:, mask.shape[1] - ids.shape[1] :].cpu().ne(0)
    rows, sizes = [], iter(before)
    for row, count in enumerate((ids == token).sum(1).tolist()):
        while count > 0:
            count -= next(sizes)
            rows.append(row)
    if images != len(rows) and len(ids) > 1:
        raise ValueError(f"{who} cannot tell which rows the {images} images belong to: continue a cache with one row at a time")
    rows = rows[-images:]
    lengths = words.sum(1)
    for row in rows:
        if not lengths[row]:
            raise ValueError(
                f"{who} needs the text of the prompt, but row {row} of {name} has an image and no text (placeholders, padding "
                f"and special tokens do not count); add text, or use vt.HoloV(), vt.Scope() or another method without it"
            )
    width = int(lengths.max())
    packed = ids.gather(1, (~words).int().sort(dim=1, stable=True).indices[:, :width])
    packed = packed.masked_fill(torch.arange(width) >= lengths.unsqueeze(1), pad)
    return Text(packed[rows], lengths[rows])


def _check_counts(name: str, token: int, counts: list[int], sizes: Sequence[int]) -> None:
    """Every row must hold whole images, and together they must hold all of them."""
    each = " or ".join(str(size) for size in sorted(set(sizes)))
    image = 0
    for row, count in enumerate(counts):
        left = count
        while left > 0 and image < len(sizes):
            left -= sizes[image]
            image += 1
        if left:
            raise ValueError(
                f"{name} does not match the images: row {row} has {count} placeholders ({token}), but {len(sizes)} images "
                f"of {each} tokens were given; expand the prompt as for the model without pruning"
            )
    if image < len(sizes):
        raise ValueError(
            f"{name} does not match the images: it has placeholders ({token}) for {image} images, but {len(sizes)} were "
            f"given; expand the prompt to {each} placeholders per image, as for the model without pruning"
        )


def _inside(mask: Tensor) -> Tensor:
    """[B, L] bool: from the first to the last column that is not masked. Holes stay, padding goes."""
    return (mask.cumsum(1) > 0) & (mask.flip(1).cumsum(1).flip(1) > 0)


def _pack(keep: Tensor, inside: Tensor) -> Tensor:
    """int64 [B, W]: the source column of each new column, -1 for padding."""
    left = (~inside).cumprod(1).sum(1)
    right = (~inside).flip(1).cumprod(1).sum(1)
    otherwise_right = bool(right.any()) and not bool(left.any())
    width = int(keep.sum(1).max())
    rows = []
    for row, x, y in zip(keep, left.tolist(), right.tolist(), strict=True):
        columns = row.nonzero().squeeze(1)
        padding = columns.new_full((width - len(columns),), -1)
        pad_right = y > x or (x == y and otherwise_right)
        rows.append(torch.cat([columns, padding] if pad_right else [padding, columns]))
    return torch.stack(rows)
