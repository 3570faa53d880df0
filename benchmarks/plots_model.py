"""The model-level results as a figure: what the first token waits for, by method and budget."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from . import style
from .model_table import Measured, groups, number

_COLOURS = {
    "vision": "#8fa3b8",
    "selection": "#a23b72",
    "projector": "#e0a33e",
    "prefill": "#2f6690",
    "other": "#c9c9c2",
}
_LINE = 0.21  # inches for each bar


def draw(rows: list[dict[str, str]]) -> Figure:
    """Stacked bars of the stages before the first token, a panel for each model, at the lowest concurrency measured of it."""
    panels: dict[str, list[Measured]] = {}
    for (model, _), cases in sorted(groups(rows).items(), key=lambda item: item[0][1]):
        panels.setdefault(model, cases)
    most = max(_lines(cases) for cases in panels.values())
    height = most * _LINE + 2.3
    width = 7.6 * len(panels)
    note = textwrap.fill(_caption(list(panels.values())), round(11 * width))
    drawn = style.figure(width, height, "What the first token waits for", note)
    axes = drawn.subplots(1, len(panels), squeeze=False)[0]
    drawn.subplots_adjust(
        left=2.1 / width, right=1 - 0.25 / width, top=1 - 1.7 / height, bottom=0.55 / height, wspace=2.35 / (7.6 - 2.35)
    )
    handles = [Patch(color=colour, label=stage) for stage, colour in _COLOURS.items()]
    drawn.legend(handles=handles, loc="upper left", ncols=len(handles), frameon=False, fontsize=9.5, labelcolor=style.INK,
                 bbox_to_anchor=(0.1 / width, 1 - 1.05 / height), handlelength=1, columnspacing=1.4)  # fmt: skip
    for panel, (model, cases) in zip(axes, panels.items(), strict=True):
        _panel(panel, model, cases, most)
    return drawn


def _panel(axes: Any, model: str, cases: Sequence[Measured], most: int) -> None:
    base = cases[0]
    longest = max(case.full("first_token") for case in cases)
    unit, scale = ("s", 1e-3) if longest >= 5000 else ("ms", 1.0)
    line, before, places = 0.0, base.kept, []
    for case in cases:
        if case.kept != before:
            line, before = line + 1, case.kept
            axes.annotate(f"{case.kept} patch tokens kept", (0, line), (4, 0), textcoords="offset points", fontsize=9,
                          color=style.MUTED, va="center")  # fmt: skip
            line += 1
        places.append(line)
        speed = "" if case is base else f"  {base.full('first_token') / case.full('first_token'):.2f}x"
        end = _bar(axes, line, case, scale)
        axes.annotate(f"{number(end)} {unit}{speed}", (end, line), (4, 0), textcoords="offset points", fontsize=8.5,
                      color=style.INK, va="center")  # fmt: skip
        line += 1
    axes.set_yticks(places, [case["method"] for case in cases])
    axes.set_ylim(most - 0.4, -0.6)
    axes.set_xlim(0, 1.22 * scale * longest)
    requests = "" if base["concurrency"] == "1" else f", {base['concurrency']} requests"
    axes.set_title(f"{model}{requests}", loc="left", fontsize=11.5, color=style.INK, pad=6, fontweight="bold")
    axes.set_xlabel("seconds" if unit == "s" else "milliseconds", fontsize=9.5, color=style.MUTED)
    style.plain(axes, grid="x", line="left")
    axes.tick_params(axis="y", labelcolor=style.INK)


def _bar(axes: Any, line: float, case: Measured, scale: float) -> float:
    """Draw the stages; return where they end."""
    parts = {stage: case.full(stage) for stage in ("vision", "selection", "projector", "prefill")}
    parts["other"] = max(0.0, case.full("first_token") - sum(parts.values()))  # of the medians, which need not add up
    left = 0.0
    for stage, value in parts.items():
        axes.barh(line, scale * value, left=left, height=0.74, color=_COLOURS[stage], linewidth=0)
        left += scale * value
    return left


def _caption(panels: Sequence[Sequence[Measured]]) -> str:
    base = panels[0][0]
    text = f"Medians, {base['dtype']}, {base['device']}."
    if any(cases[0].cut for cases in panels):
        text += (
            f" {base['vision_depth']} of {base['vision_full']} layers of the tower and {base['text_depth']} of "
            f"{base['text_full']} of the language model were run; vision and prefill are extrapolated to all."
        )
    return text + " Behind the bars: times the unpruned speed."


def _lines(cases: Sequence[Measured]) -> int:
    """Bars, and a gap and a heading for every budget."""
    return len(cases) + 2 * len({case.kept for case in cases} - {None})
