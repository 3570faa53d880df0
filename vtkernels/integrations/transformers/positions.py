"""Original positions: every kept token keeps the position that it has in the whole prompt, and what follows goes on from there.

The positions of kept visual tokens are known only once they are chosen, inside the model's forward, so they are handed to the
language model by a hook on it. A cache that was filled this way carries the positions of its columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers import cache
from vtkernels.integrations.transformers.attach import Attachments
from vtkernels.integrations.transformers.cache import repeat
from vtkernels.integrations.transformers.prompt import Placeholders, Short, rows_of


class Positions:
    """The positions of one prompt.

    Args:
        language_model: whose prompt it is.
        columns: int64 [B, W] on the host, the column of the whole prompt that each column comes from, -1 for padding.
        whole: int64 [B, L], the positions of the whole prompt.
        end: int64 [B, 1], the last of them.
        images: by noun: row, columns [before] of the whole prompt and columns [after] of the short one, for each image to come.
        past: columns that the cache holds already; ``start`` of them are not part of the prompt.
        generating: whether decoding steps follow in the same call.
    """

    def __init__(
        self,
        language_model: nn.Module,
        columns: Tensor,
        whole: Tensor,
        end: Tensor,
        images: Mapping[str, Sequence[tuple[int, Tensor, Tensor]]],
        *,
        past: int,
        start: int,
        generating: bool,
    ) -> None:
        device = whole.device
        self.language_model = language_model
        self._padding = (columns < 0).to(device)
        self._columns = columns.clamp_min(0).to(device)
        self._whole, self._last = whole, end
        self._images = {noun: list(each) for noun, each in images.items()}
        self._past, self._start = past, start
        self._generating = generating
        self.used = False

    def place(self, noun: str, ranks: Sequence[Tensor]) -> None:
        """Where the next images' kept tokens stand among their placeholders, int64 [after] each, ascending."""
        images, device = self._images[noun], self._columns.device
        for (row, before, after), rank in zip(images, ranks, strict=False):
            self._columns[row, after.to(device)] = before.to(device)[rank.clamp_max(len(before) - 1).to(device)]
        del images[: len(ranks)]

    @property
    def end(self) -> int:
        """Column of the cache behind the prompt."""
        return self._start + self._columns.shape[1]

    def between(self, start: int, end: int, rows: int, device: torch.device) -> Tensor:
        """int64 [rows, end - start]: positions of those columns of a cache; behind the prompt they count on."""
        follow = torch.arange(1, max(end - self.end, 0) + 1, device=self._last.device)
        table = torch.cat([self._table(), self._last + follow], dim=1)[:, start - self._start : end - self._start]
        return repeat(table, rows).to(device)

    def mark(self, held: Any, rows: int) -> None:
        """Leave the positions on a cache that holds the prompt now."""
        new = torch.cat([self._table()[:, self._past - self._start : -1], self._last], dim=1)
        old = _filled(getattr(held, cache.REACHED, None), self._past, rows, new.device)
        setattr(held, cache.REACHED, torch.cat([old, repeat(new, rows)], dim=1).cummax(1).values)
        setattr(held, cache.COUNTING, self._generating)

    def _table(self) -> Tensor:
        """int64 [B, W]."""
        return self._whole.gather(1, self._columns).masked_fill(self._padding, 0)


# The prompt that runs in this thread, where its positions have gaps.
POSITIONS: ContextVar[Positions | None] = ContextVar("vtkernels_positions", default=None)


def of_prompt(
    language_model: nn.Module,
    arguments: dict[str, Any],
    *,
    name: str,
    kinds: Sequence[Placeholders],
    short: Short,
    generating: bool,
) -> Positions:
    """The :class:`Positions` of a prompt that was shortened.

    Args:
        arguments: of the call, with the whole prompt at ``name``.
        kinds: what was shortened.
        generating: a call of ``generate``.

    Raises:
        ValueError: the positions given with the prompt start again inside a row.
    """
    assert short.columns is not None  # something was cut
    ids, columns, given = arguments[name], short.columns, cache.argument(arguments)
    past = cache.tokens(given)
    start = past if short.cached is None else 0
    mask, whole = arguments.get("attention_mask"), arguments.get("position_ids")
    if whole is not None:
        if mask is None and bool((whole.diff(dim=-1) < 0).any()):
            raise ValueError(
                "position_ids start again inside a row: positions = 'original' leaves gaps, which cannot be told from the "
                "border of a packed sequence; give one prompt per row, or take positions = 'contiguous'"
            )
        whole = whole.expand(len(ids), -1)
    elif generating and mask is not None and not start:
        whole = (mask.cumsum(1) - 1).clamp_min(0)  # as generate counts
    else:
        inside = columns.masked_fill(columns < 0, ids.shape[1]).amin(1, keepdim=True)
        whole = (torch.arange(ids.shape[1]) - inside).clamp_min(0).to(ids.device)
        if start:
            whole = whole + _filled(getattr(given, cache.REACHED, None), past, len(ids), ids.device)[:, -1:] + 1
    end = whole if mask is None else whole.masked_fill(mask[:, mask.shape[1] - ids.shape[1] :] == 0, 0)

    done, first = (0, 0) if short.cached is None else (short.cached.whole, past)
    host = ids[:, done:].cpu()
    images: dict[str, list[tuple[int, Tensor, Tensor]]] = {}
    for kind in kinds:
        before = [(row == kind.token).nonzero().squeeze(1) + done for row in host]
        own = columns[:, first:]
        kept = host.gather(1, (own - done).clamp_min(0)).eq(kind.token) & (own >= 0)
        after = [row.nonzero().squeeze(1) + first for row in kept]
        images[kind.noun], used = [], [[0, 0] for _ in host]
        for row, size, short_size in zip(rows_of(host, kind), kind.before, kind.after, strict=True):
            b, a = used[row]
            images[kind.noun].append((row, before[row][b : b + size], after[row][a : a + short_size]))
            used[row] = [b + size, a + short_size]
    return Positions(
        language_model, columns, whole, end.amax(1, keepdim=True), images, past=past, start=start, generating=generating
    )


def attach(language_model: nn.Module, attachments: Attachments) -> None:
    """Give the language model its positions from now on, wherever POSITIONS or the cache hold some."""
    attachments.hook(language_model.register_forward_pre_hook, _before, with_kwargs=True)
    attachments.hook(language_model.register_forward_hook, _after, with_kwargs=True)


def _before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    held = cache.argument(kwargs)
    counting = getattr(held, cache.COUNTING, False)
    positions = None if counting else POSITIONS.get()
    embeds = kwargs["inputs_embeds"]
    rows, length = embeds.shape[:2]
    if positions is not None and positions.language_model is module:
        positions.used = True
        past = int(_past(held, kwargs))
        changed: dict[str, Any] = {"position_ids": positions.between(past, past + length, rows, embeds.device)}
        if kwargs.get("attention_mask") is None:
            # without a mask, transformers takes a gap for the border of another sequence
            changed["attention_mask"] = torch.ones(rows, past + length, dtype=torch.int64, device=embeds.device)
        config: Any = module.config
        if rows == 1 and "flash" in (config._attn_implementation or ""):
            changed |= _one_sequence(length, past + length, embeds.device)
        return args, kwargs | changed
    reached = getattr(held, cache.REACHED, None)
    if reached is None or (not counting and kwargs.get("position_ids") is not None):
        return None
    return args, kwargs | {"position_ids": _following(reached, _past(held, kwargs), rows, length).to(embeds.device)}


def _after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    held = cache.argument(kwargs)
    positions = None if getattr(held, cache.COUNTING, False) else POSITIONS.get()
    if positions is None or positions.language_model is not module:
        return
    if held is None:
        held = cache.returned(output)
    counted = kwargs.get("cache_position")
    if held is not None and (cache.tokens(held) if counted is None else int(counted[-1]) + 1) >= positions.end:
        positions.mark(held, kwargs["inputs_embeds"].shape[0])


def _past(held: Any, kwargs: dict[str, Any]) -> int | Tensor:
    """Columns in the cache before a call. transformers 4 counts them itself: its static cache takes padding for free room."""
    counted: Tensor | None = kwargs.get("cache_position")
    if counted is not None:
        return counted[0]
    past: int | Tensor = 0 if held is None else held.get_seq_length()
    return past


def _following(reached: Tensor, past: int | Tensor, rows: int, length: int) -> Tensor:
    """int64 [rows, length]: positions behind the first ``past`` columns of a cache."""
    filled = reached.shape[1] - 1
    if isinstance(past, Tensor):  # of a static cache: nothing is read back to the host
        past = past.to(reached.device)
        last = reached.index_select(1, past.clamp_max(filled).view(1)) + (past - filled).clamp_min(0)
    else:
        last = reached[:, min(past, filled), None] + max(past - filled, 0)
    return repeat(last, rows) + torch.arange(1, length + 1, device=reached.device)


def _filled(reached: Tensor | None, past: int, rows: int, device: torch.device) -> Tensor:
    """int64 [rows, past + 1]: what REACHED is of exactly ``past`` columns; without gaps where nothing is noted."""
    if reached is None:
        return torch.arange(-1, past, device=device).expand(rows, -1)
    reached = repeat(reached, rows).to(device)
    behind = torch.arange(1, max(past + 1 - reached.shape[1], 0) + 1, device=device)
    return torch.cat([reached, reached[:, -1:] + behind], dim=1)[:, : past + 1]


def _one_sequence(queries: int, keys: int, device: torch.device) -> dict[str, Any]:
    """What FlashAttention is told about a single row: else transformers looks for sequences in its positions, gaps and all."""
    cumulative = {"cu_seq_lens_q": queries, "cu_seq_lens_k": keys}
    longest = {"max_length_q": queries, "max_length_k": keys}
    return {name: torch.tensor([0, n], dtype=torch.int32, device=device) for name, n in cumulative.items()} | longest
