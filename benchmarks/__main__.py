"""``python -m benchmarks`` and ``vtkernels bench`` are the same command."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from vtkernels.cli._arguments import Parser
from vtkernels.cli._errors import UsageError

COMMANDS = {  # and their modules
    "ops": "ops",
    "scaling": "scaling",
    "model": "model",
    "quality": "quality",
    "plot": "plots",
    "pages": "pages",
    "guard": "guard",
    "gpu-report": "gpu_report",
}
_EXAMPLES = """examples:
  vtkernels bench ops                  every op, its providers side by side
  vtkernels bench scaling              cost and memory against N, K, B and D, each beside its floor
  vtkernels bench model                whole models: milliseconds of every stage, unpruned and with every method
  vtkernels bench quality              what each method's selection preserves, on controlled images and features
  vtkernels bench guard                has an op lost its lead? Ratios against committed floors, in a minute
  vtkernels bench gpu-report DIR       results, tables and a plot of a run of benchmarks/gpu.sh
  vtkernels bench pages                tables and plots of the READMEs from the committed results
  vtkernels bench COMMAND --help       all options of a command
"""


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m benchmarks") -> int:
    """Run a benchmark and return the exit code: 0; 1 where a check failed; 2 for an argument that does not work."""
    parser = Parser(
        prog=prog,
        description="Benchmarks of vtkernels. Nothing is timed before its result was compared; every row names its machine.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    modules = {name: importlib.import_module(f".{module}", __package__) for name, module in COMMANDS.items()}
    for module in modules.values():
        module.add_parser(commands)
    try:
        options = parser.parse_args(argv)
    except SystemExit as leave:  # argparse has already written its message
        return int(leave.code or 0)
    try:
        code: int = modules[options.command].run(options)
        return code
    except UsageError as error:
        print(f"{prog} {options.command}: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
