"""Cost or memory against one size: a panel per op, ours solid, its floor dashed, the exponents in the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from . import style
from .environment import threads
from .harness import FLOOR
from .scaling import MEBIBYTE, Curve, fitted

_SIZES = {
    "N": ("tokens N", "K 64, B 1, D 1024"),
    "K": ("kept tokens K", "N 2880, B 1, D 1024"),
    "B": ("batch B", "N 576, K 64, D 1024"),
    "D": ("width D", "N 576, K 64, B 1"),
}


def draw(rows: Sequence[Mapping[str, str]], *, axis: str, quantity: str) -> Figure:
    """Two rows of panels, logarithmic both ways, on one scale so that ops can be compared."""
    curves = [curve for curve in fitted(rows) if (curve.axis, curve.quantity) == (axis, quantity)]
    lines = 1 if len(curves) < 4 else 2
    columns = -(-len(curves) // lines)
    width, height = max(12.9, 0.9 + 3.1 * columns), 1.35 + 2.9 * lines  # the note has to fit
    name, fixed = _SIZES[axis]
    what = "Time" if quantity == "time" else "Memory beyond inputs and outputs"
    place = f"{rows[0]['machine']}, {threads(rows[0]['threads'])}, {rows[0]['dtype']}"
    fit = "Exponents: least squares over the upper half of the points."
    note = f"{fixed} where an op has it. {place}. {'Grey: too little to measure.' if quantity == 'memory' else fit}"
    drawn = style.figure(width, height, f"{what} against {name}", note)
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    drawn.subplots_adjust(left=0.72 / width, right=1 - 0.25 / width, bottom=0.55 / height, top=1 - 1.3 / height,
                          wspace=0.1, hspace=0.22)  # fmt: skip
    sizes = sorted({x for curve in curves for x, _ in curve.ours})
    values = [y / _unit(curve) for curve in curves for _, y in (*curve.ours, *curve.floor) if y > 0]
    for panel, axes in enumerate(panels.flat):
        if panel >= len(curves):
            axes.set_visible(False)
            continue
        _panel(axes, curves[panel])
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes], fontsize=8)
        axes.minorticks_off()
        if panel + columns >= len(curves):
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(name, fontsize=10, color=style.MUTED)
    panels[0, 0].set_ylim(min(values) / 2, max(values) * (max(values) / min(values)) ** 0.3)  # room for the legends
    for axes in panels[:, 0]:
        axes.set_ylabel("milliseconds" if quantity == "time" else "MiB", fontsize=10, color=style.MUTED)
    return drawn


def _unit(curve: Curve) -> float:
    return 1 if curve.quantity == "time" else MEBIBYTE


def _panel(axes: Any, curve: Curve) -> None:
    style.plain(axes)
    axes.set_yscale("log")
    axes.set_title(curve.op, loc="left", fontsize=11, fontweight="bold", color=style.INK, pad=6)
    floor = curve.floor_name.removesuffix(FLOOR)
    if curve.quantity == "memory":
        floor = f"written by {floor}"
        axes.axhspan(1e-9, 1, color=style.GRID, alpha=0.6, linewidth=0, zorder=0)  # not told apart from nothing
    for points, slope, label, colour, dashes in (
        (curve.ours, curve.exponent, "vtkernels", style.OURS, "-"),
        (curve.floor, curve.floor_exponent, floor, style.FLOOR, "--"),
    ):
        xs, ys = zip(*points, strict=True)
        text = label if slope is None else f"{label}: {curve.axis}$^{{{slope:.2f}}}$"
        scaled = [y / _unit(curve) for y in ys]
        axes.plot(xs, scaled, dashes, marker="o", markersize=3.5, linewidth=1.9, color=colour, label=text)
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=style.INK, handlelength=1.6, borderpad=0.1)
