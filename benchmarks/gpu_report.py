"""``bench gpu-report``: results, tables and plot of a run of ``benchmarks/gpu.sh``, from the folder that it left."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtkernels.cli._errors import UsageError, require

from . import gpu_logs, gpu_tables, pages, plots
from .harness import RESULTS, load, save

PAGE = plots.DOCS / "gpu.md"
PICTURE = "gpu_ops.png"
_CSVS = {"ops.csv": "{}.csv", "scaling.csv": "{}_scaling.csv", "model.csv": "{}_model.csv"}  # and their names when committed


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "gpu-report",
        help="results, tables and a plot of a run of benchmarks/gpu.sh",
        description="Writes benchmarks/results/<device>*.csv, the sections of docs/gpu.md and its plot from the folder that\n"
        "benchmarks/gpu.sh left. What the folder lacks is named, and what was written of it before stays.",
        epilog="example:\n  vtkernels bench gpu-report results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder that benchmarks/gpu.sh left")


def run(options: argparse.Namespace) -> int:
    """Write what there is and name what is missing."""
    folder: Path = options.folder
    if not folder.is_dir():
        raise UsageError(f"argument DIR: {str(folder)!r} is no folder")
    if not RESULTS.is_dir():
        raise UsageError("reports are those of a checkout, and this is an installed package; run it there")
    missing: list[str] = []
    machine = gpu_logs.machine(folder)
    rows = {name: _rows(folder / name) for name in _CSVS}
    device = machine.get("device") or next((found[0]["device"] for found in rows.values() if found), "")
    if not device:
        raise UsageError(f"argument DIR: nothing in {str(folder)!r} names the GPU: no machine.json, and no row in a CSV")
    if "device" not in machine:
        missing.append("machine.json")
    for name, target in _CSVS.items():
        if rows[name]:
            path = RESULTS / target.format(_slug(device))
            save(rows[name], path, list(rows[name][0]))
            print(f"wrote {path}")
        else:
            missing.append(name)
    sections = {
        "machine": gpu_tables.machine(machine),
        "steps": gpu_tables.steps(gpu_logs.steps(folder)),
        "tests": gpu_tables.tests(gpu_logs.tests(folder)),
        "triton": gpu_tables.triton(gpu_logs.triton(folder)),
        "sanitizers": gpu_tables.sanitizers(gpu_logs.sanitizers(folder)),
        "targets": gpu_tables.targets(rows["ops.csv"]),
        "ops": gpu_tables.ops(rows["ops.csv"]),
        "scaling": gpu_tables.scaled(rows["scaling.csv"]),
        "model": gpu_tables.models(rows["model.csv"]),
        "ncu": gpu_tables.profile(gpu_logs.profile(folder)),
    }
    of = {"steps": "summary.txt", "tests": "cuda.xml", "triton": "triton.log", "sanitizers": "sanitize.log", "ncu": "ncu.csv"}
    missing += [file for name, file in of.items() if not sections[name]]
    _draw(rows["ops.csv"], _slug(device))
    missing += _write({name: text for name, text in sections.items() if text})
    for what in missing:
        print(f"missing: {what}")
    return 0


def _rows(path: Path) -> list[dict[str, str]]:
    return load(path) if path.is_file() else []


def _slug(device: str) -> str:
    """nvidia_h200."""
    return re.sub(r"\W+", "_", device).strip("_").lower()


def _draw(rows: Sequence[Mapping[str, str]], device: str) -> None:
    if not gpu_tables.cases(rows):
        return
    require("a plot", "viz", "matplotlib")
    from . import plots_gpu

    path = plots.DOCS / PICTURE
    plots_gpu.draw(rows).savefig(path, dpi=110, metadata={plots.KEY: plots.digest(RESULTS / f"{device}.csv")})
    print(f"wrote {path}")


def _write(sections: Mapping[str, str]) -> list[str]:
    """Put the sections between their markers; what has none is named."""
    if not PAGE.is_file():
        return [f"{PAGE}: no section was written"]
    text, missing = PAGE.read_text(), []
    for name, body in sections.items():
        begin, end = f"<!-- gpu-report:{name} -->", f"<!-- /gpu-report:{name} -->"
        if begin in text and end in text:
            text = pages.between(text, begin, end, body)
        else:
            missing.append(f"{begin} ... {end} in {PAGE}")
    PAGE.write_text(text)
    print(f"wrote {PAGE}")
    return missing
