"""The look of every plot of the benchmarks."""

from __future__ import annotations

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

PAPER, INK, MUTED, GRID = "#fafaf8", "#1c1c1c", "#6a6a66", "#e2e2de"
OURS, FLOOR, OTHER, THIRD = "#a23b72", "#6a6a66", "#2f6690", "#e0a33e"


def figure(width: float, height: float, title: str, note: str) -> Figure:
    """An empty figure of so many inches with a title and a note below it."""
    drawn = Figure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(drawn)
    drawn.text(0.3 / width, 1 - 0.32 / height, title, fontsize=16, fontweight="bold", color=INK, va="center")
    drawn.text(0.3 / width, 1 - 0.57 / height, note, fontsize=10.5, color=MUTED, va="top", linespacing=1.4)
    return drawn


def plain(axes: Any, *, grid: str = "both", line: str = "bottom") -> None:
    """Paper, a light grid, one line on one side."""
    axes.set_facecolor(PAPER)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=MUTED, labelsize=9, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == line)
        spine.set_color(MUTED)
