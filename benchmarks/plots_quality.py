"""What the methods' selections preserve, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from . import style
from .quality_table import GREEDY, METHODS, mean

# Baselines in grey, so that the methods stand out.
_COLOURS = {
    "Scope": "#2f6690",
    "FoPru": "#e0a33e",
    "GPrune": "#a23b72",
    "HoloV": "#3d8b5f",
    "PAR": "#c8553d",
    "TopAttention": "#7a6bb0",
    "Random": "#8a8a85",
    "Uniform": "#8a8a85",
    GREEDY: "#1c1c1c",
}
_DASHES = {"Random": (0, (1, 1.2)), "Uniform": (0, (4, 2)), GREEDY: (0, (6, 1.5, 1, 1.5))}
_PANELS = (
    ("coverage", "Coverage, share of the greedy set's"),
    ("attention_mass", "Attention kept"),
    ("span_error", "Lost, by least squares from kept"),
    ("nearest_error", "Lost, by the nearest kept token"),
    ("groups_hit", "Groups with a kept token"),
)
_HEAT = LinearSegmentedColormap.from_list("overlap", [style.PAPER, "#8fb3cf", "#2f6690", "#12304a"])


def draw(rows: list[dict[str, str]]) -> Figure:
    """Measures against the budget, and how much of their choice methods share at the smallest one."""
    keeps = sorted({int(row["keep"]) for row in rows if row["method"]})
    tokens, count = rows[0]["keep"], len({row["input"] for row in rows})
    note = (
        f"Means over {count} controlled inputs (images behind a random tower, features of known structure) of {tokens} tokens. "
        f"No trained weights: geometry, not accuracy."
    )
    drawn = style.figure(14.2, 9.6, "What a selection preserves", note)
    axes = drawn.subplots(2, 3)
    drawn.subplots_adjust(left=0.045, right=0.985, top=0.8, bottom=0.1, wspace=0.25, hspace=0.36)
    for place, (measure, title) in zip(axes.flat, _PANELS, strict=False):
        _lines(place, rows, keeps, measure, title)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    drawn.legend(
        handles, labels, loc="center left", bbox_to_anchor=(0.012, 0.875), ncols=len(labels), frameon=False, fontsize=10,
        labelcolor=style.INK, handlelength=2.4, columnspacing=1.6,
    )  # fmt: skip
    _matrix(axes[1, 2], rows, keeps[0])
    return drawn


def _lines(axes: Any, rows: Sequence[dict[str, str]], keeps: Sequence[int], measure: str, title: str) -> None:
    def values(method: str, column: str) -> np.ndarray:
        return np.array([mean(rows, column, method=method, keep=keep, measure=measure) or 0.0 for keep in keeps])

    whole = values(GREEDY, "value") if measure == "coverage" else 1.0
    for name in METHODS:
        middle, spread = values(name, "value") / whole, values(name, "spread") / whole
        dashes = _DASHES.get(name, "-")
        axes.plot(keeps, middle, marker="o", markersize=4.5, linewidth=2, label=name, color=_COLOURS[name], linestyle=dashes)
        if spread.any():
            axes.fill_between(keeps, middle - spread, middle + spread, color=_COLOURS[name], alpha=0.22, linewidth=0)
    style.plain(axes, grid="y")
    _title(axes, title)
    axes.set_xlabel("tokens kept", fontsize=9.5, color=style.MUTED)
    axes.set_xticks(keeps)
    low = min(line.get_ydata().min() for line in axes.lines)
    high = max(line.get_ydata().max() for line in axes.lines)
    # a share is read against 0 and 1; coverage alone is close to 1 everywhere
    axes.set_ylim(low - 0.04 if measure == "coverage" else 0, high * 1.06 if high > 1 else min(1.03, high * 1.08))


def _matrix(axes: Any, rows: Sequence[dict[str, str]], keep: int) -> None:
    table = np.eye(len(METHODS))
    for i, name in enumerate(METHODS):
        for j, other in enumerate(METHODS[i + 1 :], i + 1):
            table[i, j] = table[j, i] = mean(rows, method=name, other=other, keep=keep, measure="overlap")
    axes.imshow(table, cmap=_HEAT, vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        if i != j:
            axes.text(
                j, i, f"{value:.2f}"[1:], ha="center", va="center", fontsize=8.5, color="white" if value > 0.4 else style.INK
            )
    names = [name.replace(" ", "\n") for name in METHODS]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    style.plain(axes)
    axes.grid(False)
    _title(axes, f"How far choices agree at {keep} (Jaccard)")


def _title(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=style.INK, pad=10)
