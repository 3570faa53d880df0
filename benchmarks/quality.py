"""What each method's selection preserves, without weights or data sets: controlled images and features, seeded."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtkernels.cli import _arguments, _console
from vtkernels.cli._errors import require

if TYPE_CHECKING:
    from torch import Tensor

    from .quality_inputs import Input

KEEPS = (192, 128, 64)
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
_EXAMPLES = """examples:
  vtkernels bench quality                   every input, results to benchmarks/results/quality.csv
  vtkernels bench quality --quick           two inputs and one budget, printed only
  vtkernels bench quality --seed 1 --out quality_1.csv
"""
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


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "quality",
        help="what each method's selection preserves, on controlled images and features",
        description="Coverage, attention, reconstruction error and groups that each method's selection preserves, and how far\n"
        "methods agree; images drawn here behind a random CLIP-L/14-336 tower, and features of known structure.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="two inputs, one budget, three draws; saved only with --out")
    add("--seed", type=int, default=0, help="of images, features and weights (default: %(default)s)")
    add("--draws", type=int, metavar="N", help="seeds of the method random to average (default: 20; 3 with --quick)")
    add("--threads", type=int, default=2, metavar="N", help="CPU threads (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="the CSV to write (default: benchmarks/results/quality.csv)")


def run(options: argparse.Namespace) -> int:
    """Measure, save, print."""
    require("vtkernels bench quality", "demo", "transformers", "PIL", "numpy")
    _arguments.check_counts(options, "draws", "threads")
    _arguments.check_seed(options.seed)
    import torch

    from .harness import check_folder, default_out, save

    out = options.out or (None if options.quick else default_out("quality.csv"))
    if out is not None:
        check_folder(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        rows = measure(options.seed, draws=options.draws or (3 if options.quick else 20), quick=options.quick)
    finally:
        torch.set_num_threads(threads)
    if out is not None:
        save(rows, out, list(rows[0]))
    headers, table = summary(rows)
    _console.table([header.replace(" (", "\n(") for header in headers], table)
    print("\n" + _console.wrap(legend(rows)))
    if out is not None:
        print(f"\nWrote {out}")
    return 0


def measure(seed: int, *, draws: int, quick: bool = False) -> list[dict[str, Any]]:
    """Rows of the CSV, one value each. ``spread`` is the standard deviation over ``draws`` seeds where Random is involved."""
    import torch

    from . import quality_inputs
    from .environment import environment

    place, keeps = environment(torch.device("cpu")), KEEPS[-1:] if quick else KEEPS
    makers = list(quality_inputs.inputs(seed, quick=quick))
    rows: list[dict[str, Any]] = []
    with _console.progress(len(makers)) as step:
        for make in makers:
            given = make()
            step(f"choosing from {given.name}")
            rows += [row | {"seed": seed} | place for row in rows_of(given, keeps, draws)]
            step(f"choosing from {given.name}", 1)
    return rows


def rows_of(given: Input, keeps: Sequence[int], draws: int) -> Iterable[dict[str, Any]]:
    """All that is measured of one input, without the columns that every row shares."""
    from . import preservation

    assert given.context.features is not None
    gram, attention = preservation.inner_products(given.context.features[0]), given.context.saliency()[0]
    about = dict.fromkeys(MEASURES, gram) | {"attention_mass": attention, "groups_hit": given.labels}

    def row(method: str, other: str, keep: int, measure: str, values: Sequence[float]) -> dict[str, Any]:
        spread = f"{statistics.stdev(values):.5f}" if len(values) > 1 else ""
        return {
            "input": given.name, "family": given.family, "method": method, "other": other, "keep": keep, "measure": measure,
            "value": f"{statistics.fmean(values):.5f}", "spread": spread, "draws": len(values),
        }  # fmt: skip

    yield row("", "", len(gram), "effective_tokens", [preservation.effective_tokens(attention)])
    for keep in keeps:
        chosen = {name: select(given, name, keep, draws) for name in METHODS}
        for name, sets in chosen.items():
            for measure, subject in about.items():
                if subject is None:  # no groups to hit
                    continue
                preserved = getattr(preservation, measure)
                yield row(name, "", keep, measure, [preserved(subject, kept) for kept in sets])
        for place, name in enumerate(METHODS):
            for other in METHODS[place + 1 :]:
                shared = [preservation.overlap(a, b) for a in chosen[name] for b in chosen[other]]
                yield row(name, other, keep, "overlap", shared)


def select(given: Input, name: str, keep: int, draws: int) -> list[Tensor]:
    """The kept tokens, int64 [keep] each: one set, or ``draws`` of them for Random."""
    import torch

    import vtkernels as vt

    from . import preservation

    with torch.no_grad():
        if name == GREEDY:
            assert given.context.features is not None
            similarity = preservation.cosines(preservation.inner_products(given.context.features[0]))
            return [vt.coverage_select(similarity.float()[None], None, keep)[0][0]]
        kind = getattr(vt, name)
        methods = [kind(seed) for seed in range(draws)] if name == "Random" else [kind()]
        return [method.select(given.context, keep).indices[0] for method in methods]


# ---------------------------------------------------------------------------------------------------------------- the table


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
