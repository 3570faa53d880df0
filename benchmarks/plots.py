"""``bench plot``: draws the committed results into docs/. Each picture says in its metadata which CSV it was drawn from."""

from __future__ import annotations

import argparse
import hashlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vtkernels.cli._errors import UsageError, require

from .harness import RESULTS, load

DOCS = RESULTS.parents[1] / "docs"
KEY = "Source"  # of the PNG's metadata: the digest of the CSV, so that a picture of older results is found out


@dataclass(frozen=True)
class Plot:
    """``module.draw(rows, **options)`` of the rows of ``results/<source>`` makes ``docs/<picture>``."""

    picture: str
    source: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)


PLOTS = (
    Plot("bench_ops.png", "cpu.csv", "plots_ops"),
    *(
        Plot(f"bench_scaling_{axis.lower()}.png", "cpu_scaling.csv", "plots_scaling", {"axis": axis, "quantity": "time"})
        for axis in "NKBD"
    ),
    Plot("bench_scaling_memory.png", "cpu_scaling.csv", "plots_scaling", {"axis": "N", "quantity": "memory"}),
    Plot("bench_model.png", "cpu_model.csv", "plots_model"),
    Plot("bench_quality.png", "quality.csv", "plots_quality"),
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    commands.add_parser(
        "plot",
        help="draw the committed results into docs/",
        description="Draws every CSV of benchmarks/results that has a plot into docs/ of the checkout. `pages` does this too.",
        epilog="example:\n  vtkernels bench plot",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(options: argparse.Namespace) -> int:
    """Draw all and name them."""
    for path in draw_all():
        print(f"wrote {path}")
    return 0


def draw_all() -> Iterator[Path]:
    require("a plot", "viz", "matplotlib")
    if not DOCS.is_dir() or not RESULTS.is_dir():
        raise UsageError("plots are drawn into the docs/ of a checkout, and this is an installed package; run it there")
    for plot in PLOTS:
        source = RESULTS / plot.source
        drawn = importlib.import_module(f".{plot.module}", __package__).draw(load(source), **plot.options)
        path = DOCS / plot.picture
        drawn.savefig(path, dpi=110, metadata={KEY: digest(source)})
        yield path


def digest(source: Path) -> str:
    """Name and SHA-256 of a CSV."""
    return f"{source.name} {hashlib.sha256(source.read_bytes()).hexdigest()}"
