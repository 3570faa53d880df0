"""What each method's selection preserves, without weights or data sets: controlled images and features, seeded."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtkernels.cli import _arguments, _console
from vtkernels.cli._errors import require
from vtkernels.cli._files import check_out

from . import quality_table
from .quality_table import GREEDY, MEASURES, METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from .quality_inputs import Input

KEEPS = (192, 128, 64)
_EXAMPLES = """examples:
  vtkernels bench quality                   every input, results to benchmarks/results/quality.csv
  vtkernels bench quality --quick           two inputs and one budget, printed only
  vtkernels bench quality --seed 1 --out quality_1.csv
"""


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

    from .harness import default_out, save

    out = options.out or (None if options.quick else default_out("quality.csv"))
    if out is not None:
        check_out(out)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        rows = measure(options.seed, draws=options.draws or (3 if options.quick else 20), quick=options.quick)
    finally:
        torch.set_num_threads(threads)
    if out is not None:
        save(rows, out, list(rows[0]))
    headers, table = quality_table.summary(rows)
    _console.table([header.replace(" (", "\n(") for header in headers], table)
    print("\n" + _console.wrap(quality_table.legend(rows)))
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
