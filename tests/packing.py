"""Where the visual tokens of an unpruned model stand: plain arithmetic on sizes, none of the package's or the models' code."""

from __future__ import annotations

import math
from dataclasses import dataclass

NEWLINE, CLASS = -1, -2  # beside candidates in Packed


@dataclass(frozen=True)
class Packed:
    """The visual tokens of one image or video.

    tokens: what stands where in the prompt, a candidate (crop * patches + patch), NEWLINE or CLASS.
    canvas: the same with the padding of the tiles; newlines only where ``tokens`` has them.
    crops, patches: how candidates are counted.
    calls: images that the vision tower sees for it.
    base: candidates of the base crop, where the others are a grid.
    """

    tokens: list[int]
    canvas: list[int]
    crops: int
    patches: int
    calls: int
    base: int | None = None

    def candidates(self, padding: str = "exclude") -> list[int]:
        """In the order of the prompt."""
        return [t for t in (self.canvas if padding == "include" else self.tokens) if t >= 0]


def plain(patches: int, *, frames: int = 1, class_tokens: int = 0, newline: bool = False, calls: int | None = None) -> Packed:
    """Grids one behind the other, with class tokens before each or a newline at the end of all."""
    tokens = [t for f in range(frames) for t in [CLASS] * class_tokens + list(range(f * patches, (f + 1) * patches))]
    tokens += [NEWLINE] * newline
    return Packed(tokens, tokens, frames, patches, frames if calls is None else calls)


def anyres(size: tuple[int, int], pinpoints: list[list[int]], pixels: int, side: int) -> Packed:
    """LLaVA-NeXT: the base crop, then the rows of the grid of tiles without their padding, each with a newline behind it."""
    tiles, rows, columns = grid_of(size, pinpoints, pixels, side)
    patches = side * side

    def candidate(y: int, x: int) -> int:
        tile = (y // side) * tiles[1] + x // side
        return (1 + tile) * patches + (y % side) * side + x % side

    base = list(range(patches))
    tokens, canvas = list(base), list(base)
    for y in range(tiles[0] * side):
        whole = [candidate(y, x) for x in range(tiles[1] * side)]
        canvas += whole
        if y in rows:
            tokens += [whole[x] for x in columns] + [NEWLINE]
            canvas.append(NEWLINE)
    crops = 1 + tiles[0] * tiles[1]
    return Packed(tokens, canvas, crops, patches, crops, patches)


def pooled(size: tuple[int, int], pinpoints: list[list[int]], pixels: int, side: int, limit: int) -> Packed:
    """LLaVA-OneVision: as LLaVA-NeXT, but a grid of more than ``limit`` crops shrinks; candidates count through the prompt."""
    tiles, rows, columns = grid_of(size, pinpoints, pixels, side)
    height, width = len(rows), len(columns)
    ratio = math.sqrt(height * width / (limit * side * side))
    if ratio > 1.1:
        height, width = int(height // ratio), int(width // ratio)
    patches = side * side
    tokens = list(range(patches))
    for y in range(height):
        tokens += [*range(patches + y * width, patches + (y + 1) * width), NEWLINE]
    return Packed(tokens, tokens, 1, patches + height * width, 1 + tiles[0] * tiles[1], patches)


def tiles_of(size: tuple[int, int], pinpoints: list[list[int]], pixels: int) -> tuple[int, int]:
    """Rows and columns of tiles: the resolution that shows most of the image, then the one that wastes least."""
    best = None
    for height, width in pinpoints:
        scale = min(width / size[1], height / size[0])
        shown = min(int(size[1] * scale) * int(size[0] * scale), size[0] * size[1])
        if best is None or (shown, -(height * width - shown)) > best[0]:
            best = ((shown, -(height * width - shown)), (height // pixels, width // pixels))
    return best[1]


def grid_of(size: tuple[int, int], pinpoints: list[list[int]], pixels: int, side: int) -> tuple[tuple[int, int], range, range]:
    """Tiles, and the rows and columns of patches on the canvas that are no padding."""
    tiles = tiles_of(size, pinpoints, pixels)
    rows, columns = tiles[0] * side, tiles[1] * side
    if size[1] / size[0] > columns / rows:  # as wide as the canvas
        shown = int(round(size[0] * (columns / size[1]), 7))
        edge = (rows - shown) // 2
        return tiles, range(edge, rows - edge), range(columns)
    shown = int(round(size[1] * (rows / size[0]), 7))
    edge = (columns - shown) // 2
    return tiles, range(rows), range(edge, columns - edge)
