"""The prompt: shortened to fewer placeholders per image with everything that runs along it, and read for its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtkernels.integrations.transformers.cache import Cached

# Tensors [B, L] that follow input_ids, with what a padding column holds in each.
_FOLLOWERS = {"labels": -100, "token_type_ids": 0, "mm_token_type_ids": 0}


@dataclass(frozen=True)
class Placeholders:
    """One kind of visual input in a prompt.

    Attributes:
        noun: what one of them is called.
        token: id of its placeholder.
        before, after: placeholders of each, in the order of the prompt.
    """

    noun: str
    token: int
    before: Sequence[int]
    after: Sequence[int]


@dataclass(frozen=True)
class Short:
    """A shortened prompt.

    Attributes:
        arguments: those of the call, with ids, attention mask, positions, labels and token types replaced.
        columns: int64 [B, W] on the host, the column of the whole prompt that each column comes from, -1 for padding; None
            where nothing was cut.
        cached: the part of the prompt that a cache holds, if any: its columns come first.
    """

    arguments: dict[str, Any]
    columns: Tensor | None
    cached: Cached | None = None


def shorten(
    arguments: dict[str, Any], *, name: str, kinds: Sequence[Placeholders], pad: int, cached: Cached | None = None
) -> Short:
    """Cut the placeholders of image i from ``before[i]`` to its first ``after[i]``, images in the order of the prompt.

    Rows lose their padding and are padded again to the longest row, each on the side it was padded on; a row without padding
    follows the others, and goes to the left where nothing says otherwise, so that every row still ends in its last token.
    Positions are closed up. Reads the prompt back to the host once.

    Args:
        arguments: of ``forward`` or ``generate``, by name. Not changed.
        name: the entry of ``arguments`` that holds the token ids [B, L].
        kinds: what the prompt has placeholders for.
        pad: id that a padding column gets.
        cached: what a cache holds of the prompt: cut as it was, and not among ``kinds``. Rows that become unequal behind it
            are padded there.

    Raises:
        ValueError: the placeholders do not match the images, or something that runs along the prompt cannot be shortened.
    """
    ids = arguments[name]
    if ids.dim() != 2:
        raise ValueError(f"{name} must have shape [B, L], got {list(ids.shape)}")
    start = 0 if cached is None else cached.whole
    held = cached.columns if cached is not None and start else None
    if start > ids.shape[1]:
        raise ValueError(
            f"{name} has {ids.shape[1]} tokens, but the cache holds a prompt of {start}, visual tokens before pruning "
            f"included; give the whole conversation, as generate returned it"
        )
    host = ids[:, start:].cpu()
    keep = torch.ones_like(host, dtype=torch.bool)
    for kind in kinds:
        placeholder = host == kind.token
        _check_counts(name, kind, placeholder.sum(1).tolist())
        if kind.before:
            keep[placeholder] = torch.cat([torch.arange(n) < k for n, k in zip(kind.before, kind.after, strict=True)])
    whole = held is None or (held.shape[1] == start and not (held < 0).any())
    if whole and keep.all():
        return Short(arguments, None, cached)
    if isinstance(arguments.get("logits_to_keep"), Tensor):
        raise ValueError("logits_to_keep must be an int on a pruned model: positions of the full prompt no longer exist")

    mask, past = arguments.get("attention_mask"), 0
    inside = torch.ones_like(keep)
    if mask is not None:
        if mask.dim() != 2 or mask.shape[1] < ids.shape[1]:
            raise ValueError(
                f"attention_mask must have shape [B, L] with L = {ids.shape[1]} like {name}, got {list(mask.shape)}; a "
                f"prepared mask cannot be shortened with the prompt"
            )
        past = mask.shape[1] - ids.shape[1]  # columns of what is already in the cache
        inside = _inside(mask[:, past + start :].cpu().ne(0))
    columns = _pack(keep & inside, inside)
    if held is not None:
        columns = torch.cat([held, columns.add(start).masked_fill(columns < 0, -1)], dim=1)
        in_cache = torch.zeros(len(ids), start + 1, dtype=torch.bool)
        in_cache.scatter_(1, held.masked_fill(held < 0, start), True)
        keep = torch.cat([in_cache[:, :start], keep], dim=1)

    rows, width = columns.shape
    source = columns.to(ids.device)
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
        short["position_ids"] = take(_closed(arguments["position_ids"], ~keep), 0)
    if arguments.get("cache_position") is not None:
        short["cache_position"] = arguments["cache_position"][:width]
    if mask is not None:
        short["attention_mask"] = torch.cat([mask[:, :past], take(mask[:, past:], 0)], dim=1)
    elif bool((columns < 0).any()):
        short["attention_mask"] = take(torch.ones_like(ids), 0)
    return Short(short, columns, cached)


def rows_of(ids: Tensor, kind: Placeholders) -> list[int]:
    """The row of every image that is not in a cache; :func:`shorten` has checked the counts."""
    rows, sizes = [], iter(kind.before)
    for row, count in enumerate((ids == kind.token).sum(1).tolist()):
        while count > 0:
            count -= next(sizes)
            rows.append(row)
    return rows


def runs(ids: Tensor, token: int) -> list[int]:
    """Lengths of the stretches of a placeholder, row by row."""
    lengths = []
    for row in (ids == token).cpu().int():
        edges = torch.diff(torch.nn.functional.pad(row, (1, 1)))
        lengths += ((edges == -1).nonzero() - (edges == 1).nonzero()).squeeze(1).tolist()
    return lengths


@dataclass(frozen=True)
class Text:
    """What is written around each image: all text of its row.

    Attributes:
        ids: int64 [images, L], in the order of the row; a padding id behind the length.
        lengths: int64 [images].
    """

    ids: Tensor
    lengths: Tensor


def text_of_rows(
    arguments: dict[str, Any],
    *,
    name: str,
    rows: Sequence[int],
    special: Iterable[int],
    pad: int,
    who: str,
) -> Text:
    """The :class:`Text` of images in the given ``rows``: the ids of the row that are neither masked nor ``special``.

    Args:
        arguments, name, pad: as for :func:`shorten`.
        special: ids that are no text: placeholders and others.
        who: the method that needs the text.

    Raises:
        ValueError: an image has no text.
    """
    ids = arguments[name].cpu()
    words = ~torch.isin(ids, torch.tensor(list(special)))
    mask = arguments.get("attention_mask")
    if mask is not None and mask.dim() == 2:
        words &= mask[:, mask.shape[1] - ids.shape[1] :].cpu().ne(0)
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
    index = torch.tensor(rows, dtype=torch.int64)
    return Text(packed[index], lengths[index])


def _check_counts(name: str, kind: Placeholders, counts: list[int]) -> None:
    """Every row must hold whole images, and together they must hold all of them."""
    sizes = kind.before
    each = " or ".join(str(size) for size in sorted(set(sizes)))
    image = 0
    for row, count in enumerate(counts):
        left = count
        while left > 0 and image < len(sizes):
            left -= sizes[image]
            image += 1
        if left:
            raise ValueError(
                f"{name} does not match the {kind.noun}: row {row} has {count} placeholders ({kind.token}), but {len(sizes)} "
                f"{kind.noun} of {each or 'no'} tokens were given; expand the prompt as for the model without pruning"
            )
    if image < len(sizes):
        raise ValueError(
            f"{name} does not match the {kind.noun}: it has placeholders ({kind.token}) for {image} {kind.noun}, but "
            f"{len(sizes)} were given; expand the prompt to {each} placeholders per {kind.noun.removesuffix('s')}, as for the "
            f"model without pruning"
        )


def _closed(positions: Tensor, cut: Tensor) -> Tensor:
    """Positions without the gaps of columns [B, L] that are cut; where they start again, so does the count of gaps."""
    cut = cut.to(positions.device).long()
    gap = cut.cumsum(1)
    again = torch.nn.functional.pad(positions.diff(dim=1) < 0, (1, 0))
    return positions - gap + (gap - cut).masked_fill(~again, 0).cummax(1).values


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
