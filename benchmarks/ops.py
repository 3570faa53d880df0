"""``bench ops``: every op against what people run today, its providers side by side."""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vtkernels._schemas import SCHEMAS
from vtkernels.cli import _arguments
from vtkernels.cli._console import table
from vtkernels.cli._errors import UsageError
from vtkernels.cli._files import check_out

from . import inputs, registry
from .clock import Clock, Mode, modes
from .harness import (
    OURS,
    SIZES,
    Case,
    RedGate,
    by_case,
    default_out,
    in_half,
    measure,
    save,
    with_triton,
)
from .registry import Shape

_DTYPES = ("float32", "float16", "bfloat16")
_EXAMPLES = """examples:
  vtkernels bench ops                                      the default shapes, to benchmarks/results/cpu.csv of a checkout
  vtkernels bench ops --op scope_select --out scope.csv    one op
  vtkernels bench ops --shape llava-next-5-crops --shape llava-1.5-7b-batch-64 --out next.csv
  vtkernels bench ops --quick --op topk_select             seconds: does it run? Printed only, as all that is cut short
  vtkernels bench ops --device cuda --dtype float16        on a GPU: host and device time, warm and cold, eager and CUDA graph
  vtkernels bench ops --list                               the shapes, and the configurations they are taken from
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "ops",
        help="every op, its providers side by side",
        description="Times every op against the published computation, its reference, floors and installed peers at the\n"
        "shapes of real models. Nothing is timed before its result has been compared with that of the others.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--op", action="append", choices=list(SCHEMAS), metavar="OP", help="only this op (repeatable)")
    add("--shape", action="append", metavar="NAME", help="only this shape, with all its budgets (repeatable)")
    add("--all-shapes", action="store_true", help="the whole registry: takes hours on a small CPU")
    add("--provider", action="append", metavar="NAME", help="time only this one beside vtkernels (repeatable)")
    add("--list", action="store_true", help="print the shapes and leave")
    add("--seconds", type=float, metavar="S", help="at least so long per case (default: 2, or 0.2 with --quick)")
    add("--quick", action="store_true", help="one shape and little time: a smoke test, no figures to quote")
    add("--cold", action="store_true", help="on a CPU also with empty caches (a GPU is always measured both ways)")
    add("--dtype", choices=_DTYPES, default=_DTYPES[0], help="of features, queries and keys (default: %(default)s)")
    add("--out", type=Path, metavar="FILE", help="the CSV to write (default: benchmarks/results/DEVICE.csv for a whole run)")
    add_device(parser)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where a benchmark runs."""
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="torch.set_num_threads (default: %(default)s)")


def use_device(options: argparse.Namespace) -> str:
    """Put the inputs on the device of the options, fix the threads, and return the device's type."""
    _arguments.check_counts(options, "threads")
    device = _arguments.torch_device(options.device)
    torch.set_num_threads(options.threads)
    inputs.device = device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device.type


def run(options: argparse.Namespace) -> int:
    """Measure, print every case as it is done, and save."""
    if options.list:
        listing()
        return 0
    if options.seconds is not None and not options.seconds > 0:
        raise UsageError(f"argument --seconds: {options.seconds:g} is too small; give a number > 0")
    shapes = registry.chosen(options.shape, everything=options.all_shapes, quick=options.quick)
    device = use_device(options)
    whole = not (options.op or options.shape or options.provider or options.quick)
    name = device if options.dtype == _DTYPES[0] else f"{device}_{options.dtype}"
    out = options.out or (default_out(f"{name}.csv") if whole else None)
    if out is not None:
        check_out(out)
    seconds = options.seconds or (0.2 if options.quick else 2.0)

    inputs.dtype = getattr(torch, options.dtype)
    todo = list(cases(options.op or SCHEMAS, shapes))
    rows, red = [], []
    for case in announced(todo):
        if options.dtype != "float32":
            case = in_half(case, options.dtype)
        try:
            found = measure(
                with_triton(case), Clock(device), modes(device, cold=options.cold), seconds=seconds,
                only=options.provider or (), say=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
            )  # fmt: skip
        except RedGate as error:
            red.append(f"red gate: {error}")
            print(f"  {red[-1]}: no figure", file=sys.stderr, flush=True)
            continue
        show(found)
        rows += found
    check_providers(options.provider or (), rows)
    if out is not None and rows and not (red and options.out is None):
        save(rows, out)
        print(f"\nwrote {out}")
    if red:
        print("\n".join(red), file=sys.stderr)
    return 1 if red else 0


def cases(ops: Iterable[str], shapes: Iterable[Shape]) -> Iterator[Case]:
    """The cases of these ops at these shapes; what would be a shape already there (crops of the same tower) only once."""
    shapes, seen = list(shapes), set()
    for op in ops:
        for case in importlib.import_module(f".{op}", __package__).cases(shapes):
            key = (case.op, *case.sizes.items())
            if key not in seen:
                seen.add(key)
                yield case


def announced(todo: list[Case]) -> Iterator[Case]:
    """The cases, each named on standard error before it starts, with the time left by the pace so far."""
    started = time.perf_counter()
    for done, case in enumerate(todo):
        left = f", about {pretty((time.perf_counter() - started) / done * (len(todo) - done))} left" if done else ""
        print(f"[{done + 1}/{len(todo)}{left}] {case.op}, {case.shape}: {in_words(case.sizes)}", file=sys.stderr, flush=True)
        yield case


def pretty(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def in_words(sizes: Mapping[str, Any]) -> str:
    """B 1, N 576, ...; what a case does not have is left out."""
    return ", ".join(f"{name} {sizes[name]}" for name in SIZES if sizes.get(name))


def show(rows: list[dict[str, Any]]) -> None:
    """One line per provider and mode: median, spread and how many times slower than vtkernels it is."""
    for shared, providers in by_case(rows):
        ours = float(providers[OURS]["p50_ms"])
        mode = Mode(shared["timing"], shared["cache"], shared["launch"])
        label = "" if mode == Mode() else f"{mode.timing}, {mode.cache}, {mode.launch}"
        for name, row in providers.items():
            p20, p50, p80 = (float(row[f"p{q}_ms"]) for q in (20, 50, 80))
            line = f"  {name:<20} {p50:10.4f} ms  ({p20:.4f} to {p80:.4f})  {p50 / ours:8.2f}x  {label}"
            print(line.rstrip(), flush=True)


def check_providers(names: Iterable[str], rows: list[dict[str, Any]]) -> None:
    known = list(dict.fromkeys(row["provider"] for row in rows))
    for name in names:
        if name not in known:
            raise UsageError(f"argument --provider: {name!r} timed nothing; without --provider the cases show their names")


def listing() -> None:
    """The registry as a table; those of a default run first."""
    order = sorted(registry.SHAPES, key=lambda shape: shape.name not in registry.DEFAULT)
    rows = [
        [s.name, s.source, str(s.rows), str(s.tokens), f"{s.tower}, {s.language}", ", ".join(map(str, s.keeps))] for s in order
    ]
    headers = ["shape", "taken from", "B", "N", "D of tower\nand model", "K"]
    table(headers, rows, title=f"A default run measures the first {len(registry.DEFAULT)}.", left=2)
