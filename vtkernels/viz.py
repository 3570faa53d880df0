"""Pictures of what a method kept: patches over the image, saliency maps, and figures of several of them.

Draw on the picture that the model saw (after its resize and crop), or the patches do not line up. Needs ``vtkernels[viz]``
(pillow, matplotlib, numpy); never opens a display.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Panel", "draw_saliency", "draw_selection", "figure", "save"]

_GREY = 0.85  # how much of its colour a dropped patch loses
_SHADE = np.array((22, 22, 26), dtype=np.float32)  # towards dark: on a light ground kept white patches would vanish
_PAPER, _INK, _MUTED = "#fafaf8", "#1c1c1c", "#6a6a66"


@dataclass(frozen=True)
class Panel:
    """One picture of a figure: a title above it, a note at the right of the title, a smaller line below the title."""

    image: Image.Image
    title: str
    note: str = ""
    subtitle: str = ""


def draw_selection(
    image: Image.Image,
    indices: Tensor | Iterable[int],
    grid: tuple[int, int],
    *,
    dim: float = 0.6,
    outline: tuple[int, int, int] | None = (255, 255, 255),
    scale: int = 3,
) -> Image.Image:
    """The kept patches in full colour, the dropped ones grey and dark.

    Args:
        image: the picture as the model saw it, any size and mode.
        indices: [K] token indices in row-major order over the grid; -1 (an empty slot) is skipped.
        grid: (rows, columns) of tokens; need not be square nor divide the image.
        dim: 0 leaves dropped patches as they are, 1 turns them black.
        outline: colour of the line around kept regions; None draws no line.
        scale: enlargement, so that lines stay thinner than patches.

    Returns:
        An RGB image, ``scale`` times as large.
    """
    rows, columns = grid
    kept = _kept(indices, rows, columns)
    large = image.convert("RGB").resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    xs, ys = _edges(large.width, columns), _edges(large.height, rows)

    pixels = np.asarray(large, dtype=np.float32)
    grey = pixels.mean(-1, keepdims=True)
    dark = (pixels + (grey - pixels) * _GREY) * (1 - dim) + _SHADE * dim
    mask = np.repeat(np.repeat(kept, np.diff(ys), axis=0), np.diff(xs), axis=1)
    drawn = Image.fromarray(np.where(mask[..., None], pixels, dark).round().astype(np.uint8))
    if outline is not None:
        _outline(ImageDraw.Draw(drawn), kept, xs, ys, outline, width=max(1, scale - 1))
    return drawn


def draw_saliency(
    image: Image.Image,
    scores: Tensor | Sequence[float],
    grid: tuple[int, int],
    *,
    colours: str = "magma",
    strength: float = 0.8,
    scale: int = 3,
) -> Image.Image:
    """A heat map of one score per patch over the greyed picture.

    Args:
        image: the picture as the model saw it.
        scores: [rows * columns] scores in row-major order. Colours run from the 1st to the 99th percentile of the finite
            ones; others are drawn as the lowest.
        grid: (rows, columns) of tokens.
        colours: name of a matplotlib colour map.
        strength: 0 shows the picture alone, 1 the map alone.
        scale: enlargement.

    Returns:
        An RGB image, ``scale`` times as large.
    """
    rows, columns = grid
    values = np.asarray(scores, dtype=np.float64)
    if values.size != rows * columns:
        raise ValueError(f"scores must have {rows} x {columns} = {rows * columns} entries for this grid, got {values.size}")
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
    unit = np.clip((np.nan_to_num(values, nan=low, posinf=low, neginf=low) - low) / max(high - low, 1e-12), 0, 1)

    large = image.convert("L").resize((image.width * scale, image.height * scale), Image.Resampling.LANCZOS)
    xs, ys = _edges(large.width, columns), _edges(large.height, rows)
    heat = colormaps[colours](unit.reshape(rows, columns))[..., :3] * 255
    heat = np.repeat(np.repeat(heat, np.diff(ys), axis=0), np.diff(xs), axis=1)
    grey = np.asarray(large, dtype=np.float64)[..., None]
    return Image.fromarray((heat * strength + grey * (1 - strength)).round().astype(np.uint8))


def figure(panels: Sequence[Panel], *, title: str = "", caption: str = "", columns: int = 3, size: float = 3.6) -> Figure:
    """Panels in rows of ``columns``, each ``size`` inches wide, with a title above and a caption below.

    All panels should have the same aspect ratio. Call ``savefig`` on the result, or :func:`save`.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel, got none")
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    aspect = max(panel.image.height / panel.image.width for panel in panels)

    gap, margin, label, head = 0.22, 0.32, 0.56, 0.55 if title else 0.0
    foot = 0.12 + 0.21 * (caption.count("\n") + 1) if caption else 0.0
    row_height = label + size * aspect
    width = 2 * margin + columns * size + (columns - 1) * gap
    height = 2 * margin + head + foot + rows * row_height + (rows - 1) * 1.6 * gap

    drawn = Figure(figsize=(width, height), facecolor=_PAPER)
    FigureCanvasAgg(drawn)

    def write(left: float, top: float, text: str, room: float, points: float, **style: Any) -> float:
        """Text at inches from the top left, made smaller where it does not fit into ``room``; returns its width."""
        placed = drawn.text(left / width, 1 - top / height, text, fontsize=points, **{"va": "top", "color": _INK} | style)
        inches = placed.get_window_extent().width / drawn.dpi
        if inches > room:
            placed.set_fontsize(0.97 * points * room / inches)  # glyph widths are rounded, so not quite proportional
        return min(inches, room)

    inner = width - 2 * margin
    write(margin, margin, title, inner, 17, fontweight="bold")
    for place, panel in enumerate(panels):
        row, column = divmod(place, columns)
        left = margin + column * (size + gap)
        top = margin + head + row * (row_height + 1.6 * gap)
        used = write(left, top, panel.title, size * (0.6 if panel.note else 1.0), 13, fontweight="bold")
        write(left + size, top + 0.03, panel.note, size - used - 0.1, 10.5, ha="right", color=_MUTED)
        write(left, top + 0.27, panel.subtitle, size, 10.5, color=_MUTED)
        box = (left / width, 1 - (top + row_height) / height, size / width, size * aspect / height)
        axes = drawn.add_axes(box)
        axes.imshow(panel.image, interpolation="lanczos")
        axes.axis("off")
    write(margin, height - margin - foot + 0.12, caption, inner, 9.5, color=_MUTED, linespacing=1.45)
    return drawn


def save(drawn: Figure, path: str | Path, *, dpi: int = 130) -> None:
    """Write a figure; the suffix of ``path`` chooses the format."""
    drawn.savefig(path, dpi=dpi)


def _kept(indices: Tensor | Iterable[int], rows: int, columns: int) -> np.ndarray:
    """Indices -> boolean [rows, columns]."""
    flat = np.array([int(index) for index in indices], dtype=np.int64)
    wrong = flat[(flat < -1) | (flat >= rows * columns)]
    if wrong.size:
        raise ValueError(f"indices must lie in [0, {rows} x {columns} = {rows * columns}) or be -1, got {wrong[0]}")
    kept = np.zeros(rows * columns, dtype=bool)
    kept[flat[flat >= 0]] = True
    return kept.reshape(rows, columns)


def _edges(pixels: int, parts: int) -> np.ndarray:
    """The parts + 1 borders of a length cut into parts as equal as whole pixels allow."""
    edges: np.ndarray = np.linspace(0, pixels, parts + 1).round().astype(np.int64)
    return edges


def _outline(
    draw: ImageDraw.ImageDraw, kept: np.ndarray, xs: np.ndarray, ys: np.ndarray, colour: tuple[int, int, int], width: int
) -> None:
    """Lines where a kept patch borders a dropped one or the edge: neighbours share one outline instead of a lattice."""
    framed = np.pad(kept, 1)
    xs, ys = xs.tolist(), ys.tolist()
    for row, column in zip(*np.nonzero(framed[1:, :] != framed[:-1, :]), strict=True):
        if 1 <= column <= kept.shape[1]:
            draw.line((xs[column - 1], ys[row], xs[column], ys[row]), fill=colour, width=width)
    for row, column in zip(*np.nonzero(framed[:, 1:] != framed[:, :-1]), strict=True):
        if 1 <= row <= kept.shape[0]:
            draw.line((xs[column], ys[row - 1], xs[column], ys[row]), fill=colour, width=width)
