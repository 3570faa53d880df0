"""``vtkernels bench``: the benchmarks, which are a package of their own and are imported only here."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import vtkernels
from vtkernels.cli._errors import UsageError


def add_parser(commands: Any) -> None:
    """Add the subcommand. It takes every argument as it stands, ``--help`` too: the benchmarks have a parser of their own."""
    parser = commands.add_parser("bench", help="benchmarks of the ops", add_help=False, prefix_chars="\0")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)


def run(options: argparse.Namespace) -> int:
    """Hand over to ``python -m benchmarks``."""
    main = importlib.import_module(f"{package()}.__main__").main
    code: int = main(options.arguments, prog="vtkernels bench")
    return code


def package() -> str:
    """``vtkernels.benchmarks`` where vtkernels is installed, else the folder ``benchmarks`` beside it in a checkout."""
    if importlib.util.find_spec("vtkernels.benchmarks") is not None:
        return "vtkernels.benchmarks"
    beside = Path(vtkernels.__file__).resolve().parents[1] / "benchmarks" / "__init__.py"
    found = importlib.util.find_spec("benchmarks")
    if found is None or found.origin is None or Path(found.origin).resolve() != beside:  # someone else's package of this name
        raise UsageError(f"no benchmarks found with vtkernels in {beside.parents[1] / 'vtkernels'}; install the package again")
    return "benchmarks"
