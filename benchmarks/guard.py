"""``bench guard``: has an op lost its lead? Ratios within one run against committed floors; never absolute times.

One thread, and the processor time of it: what a neighbour takes away in the middle of a call does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vtkernels
from vtkernels._schemas import SCHEMAS
from vtkernels.cli import _console
from vtkernels.cli._errors import UsageError

from . import floors, registry
from .clock import Clock, Mode
from .environment import environment
from .harness import FLOOR, OURS, Case, RedGate, Work, complaints, measure, percentiles
from .ops import cases

FILE = Path(__file__).parent / "floors.json"
MARGIN = 0.6  # a ratio may fall to this share of the committed one: another compiler, some noise
ELSEWHERE = 0.2  # and to this on another processor: caches and memory move some ratios by three
_RUNS = 3  # of which --write keeps the smallest ratios
_SPREAD = 1.3  # p80 / p20 of a fixed product above which timings mean nothing
_BUSY = 0.9  # share of the cores that others may use: all of them also wear out the caches
_EXAMPLES = """examples:
  vtkernels bench guard              exit code 1 and the op, ratio and floor where one is violated
  vtkernels bench guard --write      the ratios of this machine as the new floors, after a change that is meant
"""


class Noisy(Exception):
    """Timings taken now would say nothing."""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "guard",
        help="ratios against committed floors, in a minute",
        description=f"Times one case of every op against what people run today and against one torch.mm, and compares the\n"
        f"ratios with benchmarks/floors.json: none may fall below {MARGIN:.0%} of the committed one, {ELSEWHERE:.0%} on\n"
        "another processor than that of the floors. Says so and passes where this machine is too noisy, or its vectors\n"
        "are of another width.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--op", action="append", choices=list(SCHEMAS), metavar="OP", help="only this op (repeatable)")
    parser.add_argument("--write", action="store_true", help="write the smallest ratios of three runs as the floors")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="per op (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Check the machine, measure, compare; a violation must be seen twice, on a machine that is still quiet."""
    if options.write and options.op:
        raise UsageError("argument --write: the floors are those of one run over every op; leave out --op")
    torch.set_num_threads(1)
    try:
        check_kind({} if options.write else committed())
        check_quiet()
        todo = list(guarded(options.op or SCHEMAS))
        found = {case.op: ratios(case, options.seconds) for case in todo}
        if options.write:
            for _ in range(_RUNS - 1):
                lowest(found, todo, options.seconds)
            check_quiet()
            write(found)
            return 0
        low = violated(found)
        if low:
            check_quiet()
            again = {case.op: ratios(case, 2 * options.seconds) for case in todo if any(op == case.op for op, _ in low)}
            found |= {op: {name: max(value, found[op][name]) for name, value in new.items()} for op, new in again.items()}
            low = violated(found)
            if low:
                check_quiet()
    except Noisy as reason:
        print(f"guard: {'NOT WRITTEN' if options.write else 'SKIPPED'}: {reason}", flush=True)
        return 1 if options.write else 0
    except RedGate as error:
        print(f"guard: FAILED: {error}", flush=True)
        return 1
    lines = [
        [op, name, f"{value:.2f}", f"{floor(op, name):.2f}", "VIOLATED" if (op, name) in low else ""]
        for op, values in found.items()
        for name, value in values.items()
    ]
    _console.table(["op", "slower by this factor", "now", "floor", ""], lines, left=2)
    for op, name in low:
        print(f"guard: FAILED: {op}: {name} / {OURS} is {found[op][name]:.2f}, the floor {floor(op, name):.2f}")
    if not low:
        print(f"guard: passed: {len(lines)} ratios of {len(found)} ops, at {share():.0%} of those of {committed()['device']}")
    return 1 if low else 0


def lowest(found: dict[str, dict[str, float]], todo: list[Case], seconds: float) -> None:
    """Measure once more and keep the smaller ratios: a floor is no record."""
    for case in todo:
        for name, value in ratios(case, seconds).items():
            found[case.op][name] = min(value, found[case.op][name])


def guarded(ops: Any) -> Iterator[Case]:
    """One case of every op: ours, the first provider that it is measured against, and the matrix product it needs."""
    shape = registry.chosen(None, quick=True)
    seen = set()
    for case in cases(ops, shape):
        if case.op.partition("(")[0] not in seen:
            seen.add(case.op.partition("(")[0])
            yield replace(case, build=partial(_few, case.build))


def _few(build: Callable[[], Work]) -> Work:
    work = build()
    rival = next(name for name in work.providers if name != OURS and not name.endswith(FLOOR))
    return replace(
        work, providers={name: call for name, call in work.providers.items() if name in (OURS, rival, floors.PRODUCT)}
    )


def ratios(case: Case, seconds: float) -> dict[str, float]:
    """Provider -> its time as a multiple of ours, both at p20: what noise touches least."""
    rows = measure(case, Clock("cpu", time.process_time), [Mode()], seconds=seconds)
    if wrong := complaints(rows):
        raise RedGate("; ".join(text.removeprefix("red gate: ") for text in wrong))
    times = {row["provider"]: float(row["p20_ms"]) for row in rows}
    return {name: value / times[OURS] for name, value in times.items() if name != OURS}


def violated(found: dict[str, dict[str, float]]) -> list[tuple[str, str]]:
    """(op, provider) of every ratio below its floor."""
    known = committed()["ratios"]
    for op, values in found.items():
        if values.keys() != known.get(op, {}).keys():
            raise UsageError(f"{FILE.name} has no floor for all of {op}: {', '.join(values)}; run with --write")
    return [(op, name) for op, values in found.items() for name, value in values.items() if value < floor(op, name)]


def floor(op: str, provider: str) -> float:
    """What the ratio must not fall below on this machine."""
    ratio: float = committed()["ratios"][op][provider]
    return share() * ratio


def share() -> float:
    """Of the committed ratios, by whether this is the processor they were taken on."""
    return MARGIN if committed()["device"] == environment(torch.device("cpu"))["device"] else ELSEWHERE


def committed() -> dict[str, Any]:
    """The floors, and where they were taken."""
    if not FILE.exists():
        raise UsageError(f"there is no {FILE}; run with --write on a quiet machine")
    floors: dict[str, Any] = json.loads(FILE.read_text())
    return floors


def write(found: dict[str, dict[str, float]]) -> None:
    """The ratios as they were measured; the margin is applied when they are read."""
    place = {name: environment(torch.device("cpu"))[name] for name in ("device", "machine", "torch", "commit", "time")}
    rounded = {op: {name: round(value, 3) for name, value in values.items()} for op, values in found.items()}
    facts = {**place, "capability": torch.backends.cpu.get_cpu_capability(), "ratios": rounded}
    FILE.write_text(json.dumps(facts, indent=2) + "\n")
    print(f"wrote {FILE}")


def check_kind(known: dict[str, Any]) -> None:
    """Ratios hold for native kernels of the same vector width."""
    state = vtkernels.status("native", "cpu")
    if not state.available:
        raise Noisy(f"the native library is not here: {state.reason}")
    here = torch.backends.cpu.get_cpu_capability()
    if known and known["capability"] != here:
        raise Noisy(f"the floors were taken with {known['capability']}, this processor has {here}")


def check_quiet() -> None:
    """Raise ``Noisy`` where others use the cores, or a fixed product takes now this, now that time."""
    busy = busy_share()
    if busy > _BUSY:
        raise Noisy(f"others keep {busy:.0%} of the cores busy, the limit is {_BUSY:.0%}")
    spread = product_spread()
    if spread > _SPREAD:
        raise Noisy(f"p80 / p20 of one torch.mm is {spread:.2f}, the limit is {_SPREAD}")


def busy_share(seconds: float = 1.0) -> float:
    """Share of all cores in use, or withheld by the host, while this process sleeps; by load where Linux does not say."""
    if not Path("/proc/stat").exists():
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    before = _ticks()
    time.sleep(seconds)
    busy, total = (now - then for now, then in zip(_ticks(), before, strict=True))
    return busy / max(total, 1)


def _ticks() -> tuple[int, int]:
    """(busy, all) since boot: user, nice, system, idle, iowait, irq, softirq, steal."""
    with open("/proc/stat") as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)


def product_spread(seconds: float = 1.0) -> float:
    """p80 / p20 of a product of about a millisecond."""
    a = torch.ones(384, 384)
    samples, started = [], time.perf_counter()
    while time.perf_counter() - started < seconds:
        begin = time.process_time()
        torch.mm(a, a)
        samples.append(time.process_time() - begin)
    times = percentiles(samples)
    return float(times["p80_ms"]) / float(times["p20_ms"])
