"""Cost or memory against one size: a panel per op, ours solid, its floor dashed, the exponents in the legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from . import style
from .harness import FLOOR
from .scaling import Curve, fitted

_SIZES = {
    "N": ("tokens N", "K 64, B 1, D 1024"),
    "K": ("kept tokens K", "N 2880, B 1, D 1024"),
    "B": ("batch B", "N 576, K 64, D 1024"),
    "D": ("width D", "N 576, K 64, B 1"),
}


def draw(rows: Sequence[Mapping[str, str]], *, axis: str, quantity: str) -> Figure:
    """Panels in rows of four, logarithmic both ways, on one scale of values so that ops can be compared."""
    curves = [curve for curve in fitted(rows) if (curve.axis, curve.quantity) == (axis, quantity)]
    columns = min(4, len(curves))
    lines = -(-len(curves) // columns)
    width, height = 0.9 + 3.1 * columns, 1.35 + 2.9 * lines
    name, fixed = _SIZES[axis]
    what = "Time" if quantity == "time" else "Memory beyond inputs and outputs"
    place = f"{rows[0]['machine']}, {rows[0]['threads']} threads, {rows[0]['dtype']}"
    note = f"{fixed} where an op has it. {place}. Exponents: least squares over the upper half of the points."
    drawn = style.figure(width, height, f"{what} against {name}", note)
    panels = drawn.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    drawn.subplots_adjust(left=0.72 / width, right=1 - 0.25 / width, bottom=0.55 / height, top=1 - 1.3 / height,
                          wspace=0.1, hspace=0.22)  # fmt: skip
    for axes in panels.flat[len(curves) :]:
        axes.set_visible(False)
    for axes, curve in zip(panels.flat, curves, strict=False):
        _panel(axes, curve)
    for axes in panels[-1]:
        axes.set_xlabel(name, fontsize=10, color=style.MUTED)
    for axes in panels[:, 0]:
        axes.set_ylabel("milliseconds" if quantity == "time" else "MiB", fontsize=10, color=style.MUTED)
    return drawn


def _panel(axes: object, curve: Curve) -> None:
    style.plain(axes)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_title(curve.op, loc="left", fontsize=11, fontweight="bold", color=style.INK, pad=6)
    floor = curve.floor_name.removesuffix(FLOOR)
    scale = 1.0 if curve.quantity == "time" else 2.0**20
    for points, slope, label, colour, dashes in (
        (curve.ours, curve.exponent, "vtkernels", style.OURS, "-"),
        (curve.floor, curve.floor_exponent, floor if curve.quantity == "time" else f"written by {floor}", style.FLOOR, "--"),
    ):
        xs, ys = zip(*points, strict=True)
        text = label if slope is None else f"{label}: {curve.axis}$^{{{slope:.2f}}}$"
        axes.plot(xs, [y / scale for y in ys], dashes, marker="o", markersize=3.5, linewidth=1.9, color=colour, label=text)
    xs = [x for x, _ in curve.ours]
    axes.set_xticks(xs, [str(x) for x in xs], fontsize=8)
    axes.minorticks_off()
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=style.INK, handlelength=1.6, borderpad=0.1)
