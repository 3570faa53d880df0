"""``python -m tests.fuzz``: random calls of every op, good and bad, held against the contract."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where the modules that tests share lie

from fuzz import watch
from fuzz.calls import draw
from fuzz.judge import judge

from vtkernels._schemas import SCHEMAS

_EXAMPLES = """examples:
  python -m tests.fuzz                                 100,000 calls in as many processes as there are cores
  python -m tests.fuzz --op crop_topk --seconds 60     one op, one minute
  python -m tests.fuzz --seed 3 --call 41              one call again: what it was, and where it fails

Every failure is one line that ends a call like the last one. The exit code is 0 where nothing failed, else 1.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Random calls of every op on the native library, held against the contract and the reference.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--calls", type=int, default=100_000, metavar="N", help="calls to make (default: 100,000)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of all random choices (default: 0)")
    parser.add_argument("--op", choices=SCHEMAS, metavar="NAME", help="this op alone (default: all)")
    parser.add_argument("--seconds", type=float, default=0, metavar="T", help="stop after so long (default: no limit)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="W", help="processes (default: one per core)")
    parser.add_argument("--call", type=int, metavar="I", help="make the one call of this index again, in this process")
    options = parser.parse_args(argv)
    if options.call is not None:
        call = draw(options.seed, options.call, options.op)
        print(call)
        judge(call)
        return 0
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    workers = max(1, min(options.workers, options.calls))
    shares = [watch.Share(options.seed, first, workers, options.calls, options.op, options.seconds) for first in range(workers)]
    start, tally, terminal = time.monotonic(), watch.Tally(), sys.stderr.isatty()
    for tally in watch.run(shares):
        if terminal:
            rate = tally.done / (time.monotonic() - start)
            print(
                f"\r{tally.done:,} of {options.calls:,} calls, {rate:,.0f}/s, {tally.failed} failed ", end="", file=sys.stderr
            )
    print(end="\n" * terminal, file=sys.stderr)
    print(f"{tally.done:,} calls, {tally.failed} failed, {time.monotonic() - start:.0f} s, seed {options.seed}")
    return int(tally.failed > 0 or tally.done == 0)


if __name__ == "__main__":
    raise SystemExit(main())
