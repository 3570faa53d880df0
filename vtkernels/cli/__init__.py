"""The ``vtkernels`` command. Heavy imports wait until a subcommand needs them, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vtkernels._version import __version__
from vtkernels.cli import bench, demo, flops, info, tune
from vtkernels.cli._arguments import Parser
from vtkernels.cli._errors import UsageError

if TYPE_CHECKING:
    from vtkernels.cli._model import Geometry

_EXAMPLES = """examples:
  vtkernels demo                      prune a LLaVA with each method: times, memory, and a picture of what was kept
  vtkernels demo --keep 32 --image photo.jpg
  vtkernels flops                     FLOPs and KV cache by method and kept tokens, beside the published figures
  vtkernels info                      versions, processor, and which backend runs each op
  vtkernels tune --output gpu.json    launch parameters of the Triton kernels for the GPU at hand
  vtkernels bench ops --quick         each op against the published computation; bench --help lists the other benchmarks
  vtkernels COMMAND --help            all options of a command
"""


def main(argv: Sequence[str] | None = None, *, geometry: Geometry | None = None) -> int:
    """Run the command line and return its exit code: 0, or 2 for an argument that does not work.

    ``geometry`` replaces the sizes of the demo's random model (tests use a tiny one).
    """
    if argv is None:  # the process is ours: a terminal that cannot show a character must not end the run
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
    parser = Parser(
        prog="vtkernels",
        description="Fused kernels for training-free visual token pruning in LLaVA-style vision-language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vtkernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    demo.add_parser(commands)
    flops.add_parser(commands)
    info.add_parser(commands)
    tune.add_parser(commands)
    bench.add_parser(commands)
    try:
        options = parser.parse_args(argv)
    except SystemExit as leave:  # argparse has already written its message
        return int(leave.code or 0)
    try:
        if options.command == "demo":
            return demo.run(options, geometry)
        code: int = {"bench": bench, "flops": flops, "info": info, "tune": tune}[options.command].run(options)
        return code
    except UsageError as error:
        print(f"vtkernels {options.command}: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as head, has seen enough; the interpreter must not try to flush once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
