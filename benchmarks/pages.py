"""``bench pages``: tables and plots of the READMEs and the site from the committed results. A test fails when they disagree."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtkernels.cli._errors import UsageError

from . import model_table, plots, quality_table, registry, scaling
from .environment import threads
from .harness import OURS, RESULTS, by_case, load
from .ops import in_words

Rows = Sequence[Mapping[str, str]]
_HERE = Path(__file__).parent
README, BENCHMARKS = _HERE.parent / "README.md", _HERE / "README.md"
INDEX, PERFORMANCE = (_HERE.parent / "docs" / f"{name}.md" for name in ("index", "performance"))
# One op of each kind for the first page, the one without a lead among them.
HEADLINE = ("scope_select", "attention_profile", "graph_propagate", "crop_topk", "topk_select", "route_tokens")


@dataclass(frozen=True)
class Block:
    """What stands between ``<!-- name: begin -->`` and ``<!-- name: end -->`` of a page, written from one CSV."""

    page: Path
    name: str
    source: str
    markdown: Callable[[Rows], str]


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    commands.add_parser(
        "pages",
        help="write the READMEs' tables, and draw the plots, from the committed results",
        description="Writes the tables of README.md, benchmarks/README.md and docs/, and its plots, from benchmarks/results.",
        epilog="example:\n  vtkernels bench pages",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(options: argparse.Namespace) -> int:
    """Write all pages and all plots."""
    if not RESULTS.is_dir():
        raise UsageError("the pages are those of a checkout, and this is an installed package; run it there")
    for page in dict.fromkeys(block.page for block in BLOCKS):
        page.write_text(written(page))
        print(f"wrote {page}")
    return plots.run(options)


def written(page: Path) -> str:
    """The page as the committed results want it."""
    text = page.read_text()
    for block in BLOCKS:
        if block.page == page:
            begin, end = f"<!-- {block.name}: begin -->", f"<!-- {block.name}: end -->"
            if begin not in text or end not in text:
                raise UsageError(f"{page} has no {begin} ... {end} for the table of {block.source}")
            text = between(text, begin, end, block.markdown(load(RESULTS / block.source)))
    return text


def between(text: str, begin: str, end: str, body: str) -> str:
    """``text`` with ``body`` between two markers that it has."""
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{body}\n{end}{rest.partition(end)[2]}"


def ops(rows: Rows, *, first_shapes: bool = False) -> str:
    """A row per op and shape: our median with its spread, and every other provider as a multiple of it."""
    heads = ["op", "shape", "vtkernels, ms (p20 to p80)", "others, in multiples of it"]
    lines, seen = [], set()
    for shared, providers in by_case(rows):
        if shared["cache"] == "cold" or (first_shapes and shared["op"] in seen):
            continue
        seen.add(shared["op"])
        shape = in_words(shared) if first_shapes else f"{shared['shape']}: {in_words(shared)}"
        p20, p50, p80 = (float(providers[OURS][f"p{q}_ms"]) for q in (20, 50, 80))
        ratios = {name: float(row["p50_ms"]) / p50 for name, row in providers.items() if name != OURS}
        others = [f"{name} {ratio:,.0f}x" if ratio >= 100 else f"{name} {ratio:.3g}x" for name, ratio in ratios.items()]
        lines.append([f"`{shared['op']}`", shape, f"{p50:.3f} ({p20:.3f} to {p80:.3f})", ", ".join(others)])
    return f"{table(heads, lines)}\n\n{rows[0]['dtype']}, {taken(rows)}"


def headline(rows: Rows) -> str:
    """The few ops of the first page, at their first shapes."""
    return ops([row for row in rows if row["op"] in HEADLINE], first_shapes=True)


def shapes(rows: Rows) -> str:
    """The registry; a default run measures what is bold."""
    heads = ["shape", "taken from", "B", "N", "D of tower, of language model", "heads", "K"]
    lines = []
    for s in registry.SHAPES:
        name = f"**{s.name}**" if s.name in registry.DEFAULT else s.name
        sizes = [str(s.rows), str(s.tokens), f"{s.tower}, {s.language}", f"{s.heads} x {s.head_dim}"]
        lines.append([name, s.source, *sizes, ", ".join(map(str, s.keeps))])
    return table(heads, lines)


def taken(rows: Rows) -> str:
    """Where, with what and when: rows of one run."""
    first, last = rows[0], rows[-1]
    days = " to ".join(dict.fromkeys((first["time"][:10], last["time"][:10])))
    return f"{threads(first['threads'])}, {first['machine']}, torch {first['torch']}, commit {first['commit']}, {days}."


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


BLOCKS = (
    Block(README, "ops", "cpu.csv", headline),
    Block(README, "model", "cpu_model.csv", lambda rows: model_table.markdown(rows, brief=True)),
    Block(INDEX, "ops", "cpu.csv", headline),
    Block(
        INDEX,
        "model",
        "cpu_model.csv",
        lambda rows: model_table.markdown([r for r in rows if r["model"] == rows[0]["model"]], brief=True),
    ),
    Block(PERFORMANCE, "ops", "cpu.csv", lambda rows: ops(rows, first_shapes=True)),
    Block(PERFORMANCE, "model", "cpu_model.csv", lambda rows: model_table.markdown(rows, brief=True)),
    Block(BENCHMARKS, "ops", "cpu.csv", ops),
    Block(BENCHMARKS, "shapes", "cpu.csv", shapes),
    Block(BENCHMARKS, "scaling", "cpu_scaling.csv", lambda rows: f"{scaling.markdown(rows)}\n\n{taken(rows)}"),
    Block(BENCHMARKS, "model", "cpu_model.csv", model_table.markdown),
    Block(BENCHMARKS, "quality", "quality.csv", quality_table.markdown),
)
