"""Device time of every op on a GPU beside Triton, what people run today and the floor: a line per case, logarithmic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from . import gpu_tables, style
from .harness import OURS
from .headline import target
from .ops import in_words

_KINDS = {
    OURS: (style.OURS, "o", "vtkernels"),
    "triton": (style.THIRD, "s", "Triton kernel"),
    "today": (style.OTHER, "o", "published computation, torch operators"),
    "floor": (style.FLOOR, "|", "floor: torch.mm or memory copy"),
}


def draw(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Bars from p20 to p80 through the median; a triangle where a target stands."""
    cases = gpu_tables.cases(rows)
    height = 1.95 + 0.36 * len(cases)
    row = rows[0]
    note = (
        f"{row['device']}, {row['dtype']}, caches warm, as a CUDA graph where one can hold it: not what a call costs the host."
    )
    drawn = style.figure(11, height, "Device time of the ops", note)
    axes = drawn.add_axes((0.36, 0.62 / height, 0.615, 1 - 1.92 / height))
    style.plain(axes, grid="x")
    axes.set_xscale("log")
    for place, (_, device, _) in enumerate(cases):
        for name in sorted(device, key=lambda name: name == OURS):
            kind = gpu_tables.kind(name)
            if kind not in _KINDS:
                continue
            colour, marker, _ = _KINDS[kind]
            p20, p50, p80 = (gpu_tables.microseconds(device[name], quantile) for quantile in (20, 50, 80))
            axes.plot([p20, p80], [place, place], color=colour, linewidth=1.6, zorder=2)
            axes.plot(p50, place, marker, color=colour, markersize=13 if marker == "|" else 6.5, markeredgewidth=1.8, zorder=3)
        limit = target(device[OURS]) if OURS in device else None
        if limit is not None:
            axes.plot(limit, place + 0.34, "^", color=style.INK, markersize=5, zorder=4)
    present = {gpu_tables.kind(name) for _, device, _ in cases for name in device}
    for kind, (colour, marker, label) in _KINDS.items():
        if kind in present:
            axes.plot([], [], marker, color=colour, markeredgewidth=1.8, label=label)
    axes.plot([], [], "^", color=style.INK, markersize=5, linestyle="none", label="target")
    axes.set_yticks(range(len(cases)), [f"{shared['op']}   {in_words(shared)}" for shared, *_ in cases])
    axes.tick_params(axis="y", colors=style.INK)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_xlabel("microseconds", fontsize=10, color=style.MUTED)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    drawn.legend(*axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.02, 1 - 0.88 / height), ncols=5,
                 frameon=False, fontsize=9.5, labelcolor=style.INK, handletextpad=0.3, columnspacing=1.4)  # fmt: skip
    return drawn
