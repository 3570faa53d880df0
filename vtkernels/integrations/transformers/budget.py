"""How many tokens to keep, and how several sets of candidates share that number."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

from vtkernels.methods import Method


def tokens_to_keep(method: Method, keep: int | float, candidates: int, grid: tuple[int, int] | None) -> int:
    """Tokens that ``method`` keeps of ``candidates``.

    Raises:
        TypeError: ``keep`` is not a number.
        ValueError: ``keep`` is out of range, or the method cannot keep that many.
    """
    default = budget(keep, candidates)
    own = getattr(method, "kept_tokens", None)
    if own is None:
        return default
    k: int = own(keep, candidates, grid)
    if not 1 <= k <= candidates:
        raise ValueError(f"{type(method).__name__}.kept_tokens must be between 1 and {candidates}, got {k}")
    return k


def budget(keep: int | float, candidates: int) -> int:
    """Tokens to keep of ``candidates``: an integer as it is, a fraction rounded to the nearest and at least 1.

    Raises:
        TypeError: ``keep`` is not a number.
        ValueError: ``keep`` is out of range.
    """
    check(keep, candidates)
    return int(keep) if isinstance(keep, Integral) else max(1, int(keep * candidates + 0.5))


def check(keep: int | float, candidates: int | None = None) -> None:
    """That ``keep`` is an int >= 1 or a fraction in (0, 1], and not more than ``candidates``, where their number is known.

    Raises:
        TypeError: it is not a number.
        ValueError: it is out of range.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"keep must be an int >= 1 or a fraction in (0, 1], got {keep!r}")
    if isinstance(keep, Integral):
        if keep < 1 or (candidates is not None and keep > candidates):
            most = "at least 1" if candidates is None else f"between 1 and the {candidates} patch tokens"
            where = "" if candidates is None else " that this model has per image"
            raise ValueError(f"keep = {keep} must be {most}{where}, or a fraction in (0, 1]")
    elif not 0 < keep <= 1:
        most = "" if candidates is None else f" to {candidates}"
        raise ValueError(f"keep = {keep} must be a fraction in (0, 1], or an int from 1{most} (tokens per image)")


def equal_shares(total: int, sizes: Sequence[int], step: int = 1) -> list[int]:
    """``total`` in equal shares, what is left to the first; what a set has no room for is shared by the others.

    Shares are multiples of ``step``: a ``total`` that is none is rounded down.
    """
    room = [size // step for size in sizes]
    left, shares = total // step, [0] * len(sizes)
    while left and any(room):
        open_sets = [i for i, free in enumerate(room) if free]
        each = left // len(open_sets)
        for i in open_sets if each else open_sets[:left]:
            more = min(max(each, 1), room[i])
            shares[i] += more
            room[i] -= more
            left -= more
    return [share * step for share in shares]


def proportional_shares(total: int, sizes: Sequence[int]) -> list[int]:
    """``total`` in proportion to ``sizes``: rounded down, then one more by the largest remainder, ties to the first."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    order = sorted(range(len(sizes)), key=lambda i: (-(total * sizes[i] % whole), i))
    for i in order[: total - sum(shares)]:
        shares[i] += 1
    return shares
