"""Original positions: every kept token keeps the position that it has in the whole prompt, and what follows goes on from there.

The positions of kept visual tokens are known only once they are chosen, inside the model's forward, so they are handed to the
language model by a hook on it. A cache that was filled this way carries the offset of what comes next.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers.attach import Attachments
from vtkernels.integrations.transformers.prompt import Placeholders, Short, rows_of

_OFFSET = "_vtkernels_offset"


@dataclass(frozen=True)
class _Offset:
    """What to add behind a prompt, int64 [B]: to the column in the cache, and to the count of unmasked tokens."""

    column: Tensor
    token: Tensor


class Positions:
    """The positions of one prompt.

    Args:
        columns: int64 [B, W] on the host, the column of the whole prompt that each column comes from, -1 for padding.
        whole: int64 [B, L], the positions of the whole prompt.
        masked: int64 [B], unmasked tokens of each row, those in the cache included.
        images: row, columns [before] of the whole prompt and columns [after] of the short one, for each image.
        generating: whether positions that come with a decoding step count from the short prompt.
    """

    def __init__(
        self,
        columns: Tensor,
        whole: Tensor,
        unmasked: Tensor,
        images: Sequence[tuple[int, Tensor, Tensor]],
        *,
        generating: bool,
    ) -> None:
        device = whole.device
        self._padding = (columns < 0).to(device)
        self._columns = columns.clamp_min(0).to(device)
        self._whole, self._unmasked, self._images = whole, unmasked.to(device), list(images)
        self._next = 0
        self.generating = generating
        self.in_cache = False

    def place(self, ranks: Sequence[Tensor]) -> None:
        """Where the next images' kept tokens stand among their placeholders, int64 [after] each, ascending."""
        for (row, before, after), rank in zip(self._images[self._next :], ranks, strict=False):
            device = self._columns.device
            own = before.to(device)[rank.clamp_max(len(before) - 1).to(device)]
            self._columns[row, after.to(device)] = own
        self._next += len(ranks)

    @property
    def width(self) -> int:
        """Columns of the short prompt."""
        return self._columns.shape[1]

    def table(self) -> Tensor:
        """int64 [B, W]."""
        return self._whole.gather(1, self._columns).masked_fill(self._padding, 0)

    def between(self, start: int, end: int, rows: int, device: torch.device) -> Tensor:
        """int64 [rows, end - start]: positions of those columns; behind the prompt they count on from its last token."""
        table = self.table()
        follow = torch.arange(1, max(end - self.width, 0) + 1, device=table.device)
        table = torch.cat([table, table.amax(1, keepdim=True) + follow], dim=1)[:, start:end]
        return table.repeat_interleave(rows // table.shape[0], 0).to(device)

    def offset(self, rows: int) -> _Offset:
        last = self.table().amax(1)
        column, token = last - (self.width - 1), last - (self._unmasked - 1)
        return _Offset(*(x.repeat_interleave(rows // len(x)) for x in (column, token)))


# The prompt that runs in this thread, where its positions have gaps.
POSITIONS: ContextVar[Positions | None] = ContextVar("vtkernels_positions", default=None)


def of_prompt(
    arguments: dict[str, Any], *, name: str, kinds: Sequence[Placeholders], short: Short, cache: Any, generating: bool
) -> Positions:
    """The :class:`Positions` of a prompt that was shortened.

    Args:
        arguments: of the call, with the whole prompt at ``name``.
        kinds: what was shortened.
        cache: what the prompt continues, where its ids are not part of the prompt.
    """
    ids, columns = arguments[name], short.columns
    host, mask = ids.cpu(), short.arguments.get("attention_mask")
    whole = arguments.get("position_ids")
    if whole is None:
        inside = columns.masked_fill(columns < 0, ids.shape[1]).amin(1, keepdim=True)
        whole = (torch.arange(ids.shape[1]) - inside).clamp_min(0).to(ids.device)
        past, offset = cached_tokens(cache), cached_offset(cache)
        whole = whole + past + (0 if offset is None else offset.unsqueeze(1).to(ids.device))
    unmasked = torch.full((len(ids),), columns.shape[1] + cached_tokens(cache)) if mask is None else mask.sum(1)

    images = []
    for kind in kinds:
        before = [(host[row] == kind.token).nonzero().squeeze(1) for row in range(len(host))]
        kept = [(host[row][columns[row].clamp_min(0)] == kind.token) & (columns[row] >= 0) for row in range(len(host))]
        after = [row.nonzero().squeeze(1) for row in kept]
        used = [[0, 0] for _ in range(len(host))]
        for row, size, short_size in zip(rows_of(host, kind), kind.before, kind.after, strict=True):
            b, a = used[row]
            images.append((row, before[row][b : b + size], after[row][a : a + short_size]))
            used[row] = [b + size, a + short_size]
    return Positions(columns, whole.expand(len(ids), -1), unmasked, images, generating=generating)


def attach(language_model: nn.Module, attachments: Attachments) -> None:
    """Give the language model its positions from now on, wherever POSITIONS or the cache hold some."""
    attachments.hook(language_model.register_forward_pre_hook, _before, with_kwargs=True)
    attachments.hook(language_model.register_forward_hook, _after, with_kwargs=True)


def cached_tokens(cache: Any) -> int:
    """Columns that a cache holds."""
    length = getattr(cache, "get_seq_length", None)
    return 0 if length is None else int(length())


def forget(cache: Any) -> None:
    """Take the offset off a cache that starts anew."""
    if hasattr(cache, _OFFSET):
        delattr(cache, _OFFSET)


def cached_offset(cache: Any) -> Tensor | None:
    """int64 [B]: how far behind its column the next token's position is; None where the cache has no gaps."""
    offset = getattr(cache, _OFFSET, None)
    return None if offset is None else offset.column


def _before(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    positions, cache = POSITIONS.get(), kwargs.get("past_key_values")
    embeds = kwargs["inputs_embeds"]
    rows, length = embeds.shape[:2]
    if positions is not None and not (positions.in_cache and cache is not None):
        past = cached_tokens(cache)
        changed = {"position_ids": positions.between(past, past + length, rows, embeds.device)}
        if kwargs.get("attention_mask") is None:
            # without a mask, transformers takes a gap for the border of another sequence
            changed["attention_mask"] = torch.ones(rows, past + length, dtype=torch.int64, device=embeds.device)
        return args, kwargs | changed
    offset = getattr(cache, _OFFSET, None)
    if offset is None:
        return None
    given = kwargs.get("position_ids")
    if given is None:
        past = cached_tokens(cache)
        given = torch.arange(past, past + length, device=embeds.device) + _rows(offset.column, rows, embeds.device)
    elif positions is not None and positions.generating:
        given = given + _rows(offset.token, rows, given.device)
    return args, kwargs | {"position_ids": given}


def _after(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
    positions = POSITIONS.get()
    if positions is None or positions.in_cache:
        return
    cache = kwargs.get("past_key_values")
    if cache is None:
        cache = getattr(output, "past_key_values", None)
    if cache is not None and cached_tokens(cache) >= positions.width:
        setattr(cache, _OFFSET, positions.offset(kwargs["inputs_embeds"].shape[0]))
        positions.in_cache = True


def _rows(offset: Tensor, rows: int, device: torch.device) -> Tensor:
    """[rows, 1]: one offset per row; beams of a prompt stand next to each other."""
    return offset.repeat_interleave(rows // len(offset)).unsqueeze(1).to(device)
