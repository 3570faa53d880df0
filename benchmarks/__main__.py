"""python -m benchmarks: every op against what people run today."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import torch

from vtkernels._schemas import SCHEMAS

from . import inputs
from .harness import RESULTS, by_case, in_half, load, measure, save, with_triton
from .table import markdown, plain, update_pages

EXAMPLES = """examples:
  python -m benchmarks                             every op, results to benchmarks/results/cpu.csv
  python -m benchmarks --op scope_select           one op, printed only
  python -m benchmarks --device cuda --dtype float16    on a GPU, results to benchmarks/results/cuda.csv
  python -m benchmarks --readme                    write the tables of both READMEs from the committed results
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--op", choices=list(SCHEMAS), action="append", help="only this op (repeatable); nothing is saved")
    parser.add_argument("--threads", type=int, default=2, help="torch.set_num_threads (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda for a GPU (default: %(default)s)")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
                        help="of features, queries and keys (default: %(default)s)")  # fmt: skip
    parser.add_argument("--out", type=Path, help="the CSV to write (default: benchmarks/results/DEVICE.csv)")
    parser.add_argument("--readme", action="store_true", help="no timing: write the READMEs' tables from --out")
    arguments = parser.parse_args()
    arguments.out = arguments.out or RESULTS / f"{arguments.device.partition(':')[0]}.csv"
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"--device {arguments.device}: torch {torch.__version__} finds no GPU here")
    if arguments.readme:
        update_pages(load(arguments.out))
        return

    torch.set_num_threads(arguments.threads)
    torch.set_default_device(arguments.device)
    inputs.dtype = getattr(torch, arguments.dtype)
    rows = []
    for op in arguments.op or SCHEMAS:
        for case in importlib.import_module(f"{__package__}.{op}").cases():
            if arguments.dtype != "float32":
                case = in_half(case, arguments.dtype)
            case = with_triton(case)
            print(f"{op} {case.shape} ...", file=sys.stderr, flush=True)
            rows += measure(case)
            for line in plain(by_case(rows[-len(case.providers) :])):
                print(line, flush=True)
    if arguments.op is None:
        arguments.out.parent.mkdir(exist_ok=True)
        save(rows, arguments.out)
        print(markdown(rows))


if __name__ == "__main__":
    main()
