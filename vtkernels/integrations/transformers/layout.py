"""Where the visual tokens of one image or video lie: crops, padding, newlines, and the sets that share its budget."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from vtkernels.integrations.transformers import budget
from vtkernels.integrations.transformers.options import Options
from vtkernels.methods import Method

NEWLINE, CLASS_TOKEN = -1, -2  # in Geometry.order, which otherwise holds candidates


@dataclass(frozen=True, eq=False)
class Geometry:
    """The tokens of an image (or video) as its model orders them, whatever is kept.

    Attributes:
        crops: grids of patches: crops, tiles or frames; the base crop first.
        patches: candidates per crop; crop c, patch p is candidate ``c * patches + p``.
        grid: rows and columns of a crop (of the base crop, where the tiles are pooled), or None.
        order: int64 [M], what stands where: a candidate, NEWLINE or CLASS_TOKEN. With padding, as if nothing were cut off.
        inside: bool [M], which of them the prompt has a placeholder for.
        base: how many candidates at the front are the base crop, where the others are one grid; None without a grid.
        calls: images in the tower's batch that the tokens come from.
        pooled: whether a candidate is made of more than one patch of the tower.
        newline_is_end: the only newline ends the image instead of a row, and is always kept.
    """

    crops: int
    patches: int
    grid: tuple[int, int] | None
    order: Tensor
    inside: Tensor
    base: int | None = None
    calls: int = 1
    pooled: bool = False
    newline_is_end: bool = False

    @property
    def before(self) -> int:
        """Placeholders in the whole prompt."""
        return int(self.inside.sum())


@dataclass(frozen=True, eq=False)
class Part:
    """Candidates that are chosen from on their own: ``k`` of ``candidates`` int64 [n]; ``crop`` if they are just that crop."""

    candidates: Tensor
    k: int
    grid: tuple[int, int] | None
    crop: int | None


@dataclass(frozen=True, eq=False)
class Layout:
    """A geometry with the decisions that do not depend on the picture.

    Attributes:
        geometry: the :class:`Geometry`.
        parts: the sets of candidates, with their budgets.
        rank: int64 [crops * patches], where a kept candidate stands among the others; -1 for one that cannot be kept.
        extras: int64 [E], ranks of the tokens that are kept without a choice: newlines or class tokens.
        newlines: how many of them are newlines.
        most: how many candidates can be kept: padding that is kept may displace other tokens, but never lengthens the prompt.
        before, after: visual tokens in the prompt.
    """

    geometry: Geometry
    parts: tuple[Part, ...]
    rank: Tensor
    extras: Tensor
    newlines: int
    most: int
    before: int
    after: int

    @property
    def in_order(self) -> bool:
        """One set in the order of the prompt and nothing between: its choice is the answer."""
        return len(self.parts) == 1 and not len(self.extras)


def lay_out(geometry: Geometry, method: Method, keep: int | float, options: Options, *, clip: bool) -> Layout:
    """The :class:`Layout` of an image.

    Args:
        clip: more tokens than can be kept means as many as can; without it, that is an error.

    Raises:
        TypeError, ValueError: as :func:`vtkernels.integrations.transformers.budget.tokens_to_keep`.
    """
    sequence = geometry.order if options.padding == "include" else geometry.order[geometry.inside]
    present = geometry.inside if options.padding == "include" else geometry.inside[geometry.inside]
    rank = torch.full((geometry.crops * geometry.patches,), -1, dtype=torch.int64)
    places = (sequence >= 0).nonzero().squeeze(1)
    rank[sequence[places]] = places

    newline = (sequence == NEWLINE) & present
    if options.newlines == "drop" and not geometry.newline_is_end:
        newline = torch.zeros_like(newline)
    extras = ((sequence == CLASS_TOKEN) | newline).nonzero().squeeze(1)

    sets = _sets(geometry, sequence, options.budget)
    most = min(len(places), geometry.before - len(extras))
    shares = _shares(method, keep, sets, options.budget, most, clip)
    parts = tuple(Part(c, k, grid, crop) for (c, grid, crop), k in zip(sets, shares, strict=True) if k)
    return Layout(
        geometry, parts, rank, extras, int(newline.sum()), most, geometry.before, sum(part.k for part in parts) + len(extras)
    )


_Set = tuple[Tensor, "tuple[int, int] | None", "int | None"]


def _sets(geometry: Geometry, sequence: Tensor, budget: str) -> list[_Set]:
    """Candidates, grid and crop of each set; ``sequence`` is the part of ``geometry.order`` that there is to choose from."""
    candidates = sequence[sequence >= 0]
    if budget == "per_branch" and geometry.base is not None:
        base, tiles = candidates[candidates < geometry.base], candidates[candidates >= geometry.base]
        crop = None if geometry.pooled else 0
        return [(base, geometry.grid, crop), (tiles, _columns(sequence, tiles), None)]
    if budget == "joint" and geometry.crops > 1:
        return [(candidates, None, None)]
    sets: list[_Set] = []
    for crop in range(geometry.crops):
        start, end = crop * geometry.patches, (crop + 1) * geometry.patches
        own = candidates[(candidates >= start) & (candidates < end)].sort().values
        whole = len(own) == geometry.patches
        sets.append((own, _rectangle(geometry, own - start), crop if whole else None))
    return sets


def _columns(sequence: Tensor, tiles: Tensor) -> tuple[int, int] | None:
    """Rows and columns of the grid behind the base crop: every row ends in a newline."""
    rows = int((sequence == NEWLINE).sum())
    return (rows, len(tiles) // rows) if rows and len(tiles) % rows == 0 else None


def _rectangle(geometry: Geometry, patches: Tensor) -> tuple[int, int] | None:
    """Rows and columns of some patches of a crop, if they fill a grid; a pooled image has more of them than its base crop."""
    if geometry.grid is None or (patches >= geometry.grid[0] * geometry.grid[1]).any():
        return None
    rows, columns = (len(x.unique()) for x in (patches // geometry.grid[1], patches % geometry.grid[1]))
    return (rows, columns) if rows * columns == len(patches) else None


def _shares(method: Method, keep: int | float, sets: list[_Set], how: str, most: int, clip: bool) -> list[int]:
    sizes = [len(candidates) for candidates, _, _ in sets]
    total, clip = sum(sizes), clip and isinstance(keep, Integral)
    if how == "per_branch" and len(sets) > 1:
        if isinstance(keep, Integral):
            keep = min(keep, most) if clip else keep
            return budget.proportional_shares(budget.tokens_to_keep(method, keep, total, None), sizes)
        shares = [budget.tokens_to_keep(method, keep, n, g) if n else 0 for n, (_, g, _) in zip(sizes, sets, strict=True)]
        return shares if sum(shares) <= most else budget.proportional_shares(most, sizes)
    widths = {grid[1] if grid else None for candidates, grid, _ in sets if len(candidates)}
    width = widths.pop() if len(widths) == 1 else None
    grid = (total // width, width) if width else None
    step = getattr(method, "step", None)
    step = 1 if step is None or grid is None else step(grid)
    keep = min(keep, most // step * step) if clip else keep
    return budget.equal_shares(min(budget.tokens_to_keep(method, keep, total, grid), most), sizes, step)
