"""FLOPs to the first token and KV cache against the tokens kept, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vtkernels import flops

_PAPER, _INK, _MUTED, _GRID = "#fafaf8", "#1c1c1c", "#6a6a66", "#e2e2de"
_TOWER, _BETWEEN, _PREFILL = "#8fa3b8", "#e0a33e", "#2f6690"
_CACHE = "#a23b72"


def draw(
    model: flops.Llava, method: str, keeps: Sequence[int], *, title: str, prompt_tokens: int, new_tokens: int, batch: int,
    dtype_bytes: float,
) -> Figure:  # fmt: skip
    """Two panels over the tokens kept by ``method``; ``keeps`` are marked with what they save."""
    options: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "batch": batch,
        "dtype_bytes": dtype_bytes,
    }
    base = flops.cost(model, None, model.tokens, **options)
    kept = np.unique(np.linspace(1, model.tokens, 200).round().astype(int))
    costs = [flops.cost(model, method, int(keep), **options) for keep in kept]
    marked = [(keep, flops.cost(model, method, keep, **options)) for keep in sorted(set(keeps))]

    drawn = Figure(figsize=(11, 4.9), facecolor=_PAPER)
    FigureCanvasAgg(drawn)
    left, right = drawn.subplots(1, 2)
    drawn.subplots_adjust(left=0.065, right=0.975, top=0.76, bottom=0.13, wspace=0.17)
    drawn.text(0.022, 0.945, f"{title}: what the kept tokens cost", fontsize=16, fontweight="bold", color=_INK, va="center")
    setting = (
        f"{method}, {prompt_tokens} prompt tokens, {new_tokens} new tokens, batch {batch}. Dots: the kept tokens asked for."
    )
    drawn.text(0.022, 0.885, setting, fontsize=10.5, color=_MUTED, va="center")

    between = [cost.projector + cost.selection for cost in costs]
    share = max(spent / cost.first_token for spent, cost in zip(between, costs, strict=True))
    stages = {
        "vision tower": ([cost.vision for cost in costs], _TOWER),
        f"projector, selection (at most {100 * share:.1f}%)": (between, _BETWEEN),
        "prefill": ([cost.prefill for cost in costs], _PREFILL),
    }
    heights, colours = zip(*stages.values(), strict=True)
    areas = left.stackplot(kept, np.array(heights) / 1e12, colors=colours, linewidth=0)
    place = {"loc": "upper left", "bbox_to_anchor": (0, 0.87)}  # under the line of the unpruned model
    left.legend(areas[::-1], list(stages)[::-1], frameon=False, fontsize=9.5, labelcolor=_INK, **place)
    right.plot(kept, [cost.kv_cache / 2**20 for cost in costs], color=_CACHE, linewidth=2.2)
    panels = (
        (left, "FLOPs to the first token (TFLOP)", base.first_token / 1e12, [cost.first_token / 1e12 for _, cost in marked]),
        (right, "KV cache at the last token (MiB)", base.kv_cache / 2**20, [cost.kv_cache / 2**20 for _, cost in marked]),
    )
    for axes, label, whole, values in panels:
        _style(axes, label, model.tokens, whole)
        points = 72 * axes.get_window_extent().height / drawn.dpi / axes.get_ylim()[1]
        lowest = 0.0
        for (keep, _), value in zip(marked, values, strict=True):
            axes.plot(keep, value, "o", color=_PAPER, markeredgecolor=_INK, markeredgewidth=1.6, markersize=7, zorder=4)
            # to the right of and below its dot, but clear of the axis and of the label before
            height = max(value * points - 11, lowest + 9)
            lowest = height + 9
            axes.annotate(
                f"{keep}: {100 * (value / whole - 1):+.0f}%", (keep, value), (12, height - value * points),
                textcoords="offset points", fontsize=9.5, color=_INK, va="center", zorder=5,
                bbox={"boxstyle": "round,pad=0.15", "facecolor": _PAPER, "edgecolor": "none", "alpha": 0.85},
            )  # fmt: skip
    return drawn


def _style(axes: Any, label: str, tokens: int, whole: float) -> None:
    axes.set_facecolor(_PAPER)
    axes.set_title(label, loc="left", fontsize=11, color=_INK, pad=10)
    axes.set_xlabel("patch tokens kept", fontsize=10, color=_MUTED)
    axes.set_xlim(0, tokens * 1.02)
    axes.set_ylim(0, whole * 1.14)
    axes.axhline(whole, color=_MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.text(tokens, whole * 1.02, "unpruned", fontsize=9.5, color=_MUTED, ha="right", va="bottom")
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, labelsize=9.5, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_MUTED)
