"""The table of ``bench quality``, from its CSV."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vtkernels.cli import _arguments

SALIENCIES = ("agrees", "independent", "contradicts")  # with, of and with the structure of the features
GREEDY = "Greedy coverage"  # the greedy set for coverage alone: what SCOPE is without its saliency
METHODS = (*_arguments.METHODS, GREEDY)
MEASURES = {
    "coverage": "coverage",
    "attention_mass": "attention kept",
    "span_error": "lost, least squares",
    "nearest_error": "lost, nearest kept",
    "groups_hit": "groups hit",
}
_LEGEND = (
    "Means over {count} inputs ({names}). Coverage: mean over all tokens of the cosine with the most similar kept token, as a "
    "share of that of the greedy set for coverage alone. Attention kept: share of the class token's attention. Lost: the share "
    "of the tokens' variance that is lost if every token is put together from the kept ones by least squares, or replaced by "
    "the most similar kept one (1: as bad as the mean token). Groups hit: share of the true groups with a kept token, where "
    "there are groups. Random: mean of {draws} draws, ± their standard deviation, mean over inputs. The images go through a "
    "CLIP-L/14-336 tower cut to three layers, with random weights: alike patches get alike features, but attention and "
    "projector know no meaning, and PAR's prompt says nothing about a picture. Geometry, then; accuracy takes trained weights."
)
_SALIENCY = (
    "The same clustered features under three saliencies, which give the same attention values to other tokens: rare tokens are "
    "salient (it agrees with the structure), any are (it is independent of it), or the crowd is (it contradicts it)."
)


def mean(rows: Iterable[Mapping[str, Any]], column: str = "value", **where: Any) -> float | None:
    """Mean of a column over the rows with these entries; None where there are none."""
    values = [float(row[column]) for row in rows if all(str(row[k]) == str(v) for k, v in where.items()) and row[column] != ""]
    return statistics.fmean(values) if values else None


def summary(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headers and cells: a row per method, ``192 / 128 / 64`` in every cell."""
    keeps = sorted({int(row["keep"]) for row in rows if row["method"]}, reverse=True)
    headers = [f"kept: {' / '.join(map(str, keeps))} of {rows[0]['keep']}"]
    headers += [f"{title} (of greedy)" if measure == "coverage" else title for measure, title in MEASURES.items()]
    return headers, [[name, *(_cell(rows, name, measure, keeps) for measure in MEASURES)] for name in METHODS]


def _cell(rows: Sequence[Mapping[str, Any]], method: str, measure: str, keeps: Sequence[int]) -> str:
    parts = []
    for keep in keeps:
        where: dict[str, Any] = {"method": method, "keep": keep, "measure": measure}
        value, spread = mean(rows, **where), mean(rows, "spread", **where)
        if value is None:
            return "-"
        if measure == "coverage":
            whole = mean(rows, **where | {"method": GREEDY})
            assert whole is not None  # greedy is always measured
            value, spread = value / whole, spread and spread / whole
        parts.append(f"{value:.2f}" if not spread or spread < 0.005 else f"{value:.2f} ±{spread:.2f}")
    return " / ".join(parts)


def legend(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the table shows."""
    names = list(dict.fromkeys(row["input"] for row in rows))
    draws = max(int(row["draws"]) for row in rows if row["method"] == "Random" and not row["other"])
    return _LEGEND.format(count=len(names), names="; ".join(names), draws=draws)


def by_saliency(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Groups hit and coverage of the clustered features at the smallest budget, by what their saliency says."""
    keep = min(int(row["keep"]) for row in rows)
    said = " / ".join(SALIENCIES)
    headers = [f"kept: {keep}, saliency {said}", "groups hit", "coverage"]
    cells = []
    for name in METHODS:
        where: list[dict[str, Any]] = [
            {"method": name, "keep": keep, "input": f"clusters, saliency {saliency}"} for saliency in SALIENCIES
        ]
        values = [[mean(rows, measure=measure, **one) for one in where] for measure in ("groups_hit", "coverage")]
        cells.append([name, *(" / ".join("-" if value is None else f"{value:.2f}" for value in row) for row in values)])
    return headers, cells


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables, what they show, and where the numbers come from."""
    row = rows[0]
    source = f"Seed {row['seed']}, {row['device']}, torch {row['torch']}, {row['time'][:10]}."
    return "\n\n".join([_table(*summary(rows)), legend(rows), _SALIENCY, _table(*by_saliency(rows)), source])


def _table(headers: list[str], cells: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [headers, ["---"] * len(headers), *cells])
