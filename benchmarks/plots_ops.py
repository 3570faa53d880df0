"""What runs today and what nothing can beat, as multiples of ours: a line per op, on a logarithmic axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from . import style
from .environment import threads
from .harness import FLOOR, OURS, by_case
from .ops import in_words

_KINDS = {"today": (style.OTHER, "o"), "reference": (style.THIRD, "s"), "floor": (style.FLOOR, "|")}


def draw(rows: Sequence[Mapping[str, str]]) -> Figure:
    """The first shape of every op; bars from p20 to p80 of the other, over our median."""
    cases, seen = [], set()
    for shared, providers in by_case(rows):
        if shared["cache"] == "warm" and shared["op"] not in seen:
            seen.add(shared["op"])
            cases.append((shared, providers))
    height = 1.75 + 0.34 * len(cases)
    note = f"{rows[0]['machine']}, {threads(rows[0]['threads'])}, {rows[0]['dtype']}. Right of the line: slower than vtkernels."
    drawn = style.figure(11, height, "Every op against what people run today", note)
    axes = drawn.add_axes((0.42, 0.62 / height, 0.555, 1 - 1.72 / height))
    style.plain(axes, grid="x")
    axes.set_xscale("log")
    axes.axvline(1, color=style.OURS, linewidth=2, zorder=1)
    for place, (_, providers) in enumerate(cases):
        ours = float(providers[OURS]["p50_ms"])
        for name, row in providers.items():
            if name == OURS:
                continue
            colour, marker = _KINDS["floor" if name.endswith(FLOOR) else name if name in _KINDS else "today"]
            p20, p50, p80 = (float(row[f"p{q}_ms"]) / ours for q in (20, 50, 80))
            axes.plot([p20, p80], [place, place], color=colour, linewidth=1.6, zorder=2)
            axes.plot(p50, place, marker, color=colour, markersize=13 if marker == "|" else 6.5, markeredgewidth=1.8, zorder=3)
    for name, (colour, marker) in _KINDS.items():
        label = {"today": "published computation, torch operators, peers", "floor": "floor: torch.mm or memory copy"}
        axes.plot([], [], marker, color=colour, markeredgewidth=1.8, label=label.get(name, name))
    axes.set_yticks(range(len(cases)), [f"{shared['op']}   {in_words(shared)}" for shared, _ in cases])
    axes.tick_params(axis="y", colors=style.INK)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.set_xlabel("time as a multiple of vtkernels", fontsize=10, color=style.MUTED)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9.5, labelcolor=style.INK)
    return drawn
