"""Runs calls in child processes, so that a crash or a hang is a failure of one call and not the end of the run.

A child writes the index of the call it is about to make into a file shared with the parent; what stands there when the child
dies is the call that killed it. A call that takes too long is ended by ``faulthandler``, which prints where it hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import mmap
import os
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from fuzz.calls import draw

import vtkernels as vt

_CELL = struct.Struct("qqq")  # the call that is being made, calls done, failures


@dataclass
class Share:
    """The calls of one child: every ``step``-th from ``first`` on, before ``calls``."""

    seed: int
    first: int
    step: int
    calls: int
    op: str | None = None
    seconds: float = 0  # 0: no limit
    hang_seconds: float = 60
    judge: str = "fuzz.judge"  # the module that has the function


class Cell:
    """Three numbers in shared memory, one writer."""

    def __init__(self, path: Path):
        path.touch()
        os.truncate(path, _CELL.size)
        with path.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), _CELL.size)

    def write(self, call: int, done: int, failed: int) -> None:
        _CELL.pack_into(self.memory, 0, call, done, failed)

    def read(self) -> tuple[int, int, int]:
        return _CELL.unpack_from(self.memory, 0)


def reproducer(share: Share, index: int) -> str:
    return f"python -m tests.fuzz --seed {share.seed} --call {index}" + (f" --op {share.op}" if share.op else "")


# ------------------------------------------------------------------------------------------------ the child


def work(share: Share, path: Path, most_failures: int) -> None:
    """Makes the calls; a failure is one line with its reproducer."""
    faulthandler.enable()
    torch.set_num_threads(2)
    cell, done, failed, end = Cell(path), 0, 0, time.monotonic() + share.seconds
    for index in range(share.first, share.calls, share.step):
        cell.write(index, done, failed)
        faulthandler.dump_traceback_later(share.hang_seconds, exit=True)
        failed += not passes(share, index)
        done += 1
        if failed >= most_failures or (share.seconds and time.monotonic() > end):
            break
    faulthandler.cancel_dump_traceback_later()
    cell.write(-1, done, failed)


def passes(share: Share, index: int) -> bool:
    op, judge = share.op, importlib.import_module(share.judge).judge
    try:
        call = draw(share.seed, index, op)
        op = call.op
        judge(call)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print(f"{reproducer(share, index)}  # {op}, {Path(where.filename).name}:{where.lineno}, {words}", flush=True)
        return False
    return True


# ------------------------------------------------------------------------------------------------ the parent


@dataclass
class Child:
    share: Share
    process: subprocess.Popen
    cell: Cell
    path: Path
    before: int = 0  # calls done by those it follows


@dataclass
class Tally:
    """Calls done and failed so far, over all children."""

    done: int = 0
    failed: int = 0


def run(shares: list[Share], most_failures: int = 20) -> Iterator[Tally]:
    """Runs the shares side by side; yields the tally several times a second and at the end."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        children = []
        for i, share in enumerate(shares):
            children.append(_start(share, Path(folder) / f"{i}", most_failures))
        stack.callback(lambda: [child.process.kill() for child in children])
        finished = Tally()
        while children:
            for child in list(children):
                if child.process.poll() is None:
                    continue
                children.remove(child)
                call, done, failed = child.cell.read()
                finished.done, finished.failed = finished.done + done, finished.failed + failed
                if child.process.returncode == 0 and call == -1:
                    continue
                finished.done, finished.failed = finished.done + 1, finished.failed + 1
                print(f"{reproducer(child.share, call)}  # died with {_cause(child.process.returncode)}", flush=True)
                rest = Share(**{**vars(child.share), "first": call + child.share.step})
                if finished.failed < most_failures and call >= 0:
                    children.append(_start(rest, child.path, most_failures))
            running = [child.cell.read() for child in children]
            yield Tally(finished.done + sum(c[1] for c in running), finished.failed + sum(c[2] for c in running))
            time.sleep(0.1 if children else 0)


def _start(share: Share, path: Path, most_failures: int) -> Child:
    cell = Cell(path)
    cell.write(-2, 0, 0)  # died before its first call
    code = f"from fuzz.watch import *; work({share!r}, Path({str(path)!r}), {most_failures})"
    # From the folder of the tests, and with the package that the parent has.
    search = os.pathsep.join([str(Path(vt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    # Two children on two cores with two threads each: a thread that waits must not spin.
    environment = {**os.environ, "PYTHONPATH": search, "OMP_WAIT_POLICY": "passive"}
    folder = Path(__file__).parents[1]
    return Child(share, subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=folder), cell, path)


def _cause(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode} (a hang, if a traceback stands above)"
