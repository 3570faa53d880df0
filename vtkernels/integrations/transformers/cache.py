"""What a cache holds of a prompt that was shortened, so that a later turn can be cut alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Attributes of a cache. A cache without the first one holds every column of its prompt.
_COLUMNS = "_vtkernels_columns"  # int64 [B, n], columns of the whole prompt
_WHOLE = "_vtkernels_whole"  # how many columns the whole prompt has
REACHED = "_vtkernels_reached"  # int64 [B, n + 1], the greatest position among the first 0, 1, ... n columns, -1 for none
# True while generate runs: its decoding steps go on from REACHED, whatever positions come with them. An attribute, and not a
# context variable, because torch.compile can trace it.
COUNTING = "_vtkernels_counting"


@dataclass(frozen=True)
class Cached:
    """The part of a prompt that a cache holds.

    Attributes:
        columns: int64 [B, n] on the host, the column of the whole prompt that each column of the cache comes from, -1 for
            padding.
        whole: columns of the whole prompt that are done with.
    """

    columns: Tensor
    whole: int


def argument(arguments: dict[str, Any]) -> Any:
    """The cache that a call is given, or None. From transformers 5.24 on its name is ``cache``."""
    held = arguments.get("cache")
    return arguments.get("past_key_values") if held is None else held


def returned(output: Any) -> Any:
    """The cache in an output of a model or of ``generate``, or None."""
    held = getattr(output, "cache", None)
    return getattr(output, "past_key_values", None) if held is None else held


def tokens(cache: Any) -> int:
    """Columns that a cache holds. Reads a static cache back to the host."""
    length = getattr(cache, "get_seq_length", None)
    return 0 if length is None else int(length())


def remember(cache: Any, columns: Tensor, whole: int) -> None:
    """Note on a cache that it begins with ``columns`` [B, n] of a prompt of ``whole`` columns; what follows counts on."""
    setattr(cache, _COLUMNS, columns)
    setattr(cache, _WHOLE, whole)


def recall(cache: Any, rows: int) -> Cached:
    """What a cache holds now, which may be more or less than when it was noted.

    Raises:
        ValueError: it was filled with another number of rows.
    """
    past, columns = tokens(cache), getattr(cache, _COLUMNS, None)
    if columns is None:
        return Cached(torch.arange(past).expand(rows, -1), past)
    columns, whole, noted = repeat(columns, rows), getattr(cache, _WHOLE), columns.shape[1]
    if past >= noted:
        behind = torch.arange(whole, whole + past - noted).expand(rows, -1)
        return Cached(torch.cat([columns, behind], dim=1), whole + past - noted)
    columns = columns[:, :past]
    return Cached(columns, int(columns.max()) + 1 if past else 0)


def forget(cache: Any, *names: str) -> None:
    """Take notes off a cache: all of them, when it starts anew."""
    for name in names or (_COLUMNS, _WHOLE, REACHED, COUNTING):
        if hasattr(cache, name):
            delattr(cache, name)


@contextmanager
def counting(cache: Any, *, now: bool) -> Iterator[None]:
    """A ``generate`` with a cache: its steps count for themselves, ``now`` or once the prompt is in; not when it is over."""
    if now and cache is not None:
        setattr(cache, COUNTING, True)
    try:
        yield
    finally:
        forget(cache, COUNTING)


def repeat(x: Tensor, rows: int) -> Tensor:
    """[rows, ...]: beams of a prompt stand next to each other."""
    if rows % len(x):
        raise ValueError(
            f"the cache was filled with a pruned prompt of {len(x)} rows and is continued with {rows}; keep its rows, or give "
            f"the whole prompt again without the cache"
        )
    return x.repeat_interleave(rows // len(x), 0)
