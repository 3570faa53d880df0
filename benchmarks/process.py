"""Processes of a run on a GPU. One that crashes, hangs or has lost its GPU costs the case it was at; a fresh one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

import torch

_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)


def command() -> list[str]:
    """This process's own."""
    return [sys.executable, *sys.orig_argv[1:]]


def start_again(*arguments: str) -> NoReturn:
    """The command of this process with further arguments, in its place and under its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [*command(), *arguments])


def spoilt(device: str) -> bool:
    """Whether an earlier error, such as an access out of bounds in a kernel, makes every later call on the GPU fail."""
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        return torch.ones(2, device="cuda").sum().item() != 2
    except Exception:
        return True


def watched(limit: float) -> int:
    """This command in a process of its own, which is told with ``--watched FILE`` where to write the number of each case.

    If it crashes, or one case takes more than ``limit`` seconds, the next case is begun in a fresh process, which is told with
    ``--crashed`` what to write of the one that is lost. Returns the exit code.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "case"
        more: list[str] = []
        while True:
            how, code = _end([*command(), *more, "--watched", str(place)], place, limit)
            case = _read(place)
            if not how or case == 0:
                return code
            print(f"  {how}; a fresh process goes on", file=sys.stderr, flush=True)
            more = ["--start", str(case + 1), "--crashed", how, "--red"]
            place.unlink()


def _end(arguments: list[str], place: Path, limit: float) -> tuple[str, int]:
    """Run to the end: how it broke off, empty where it did not, and the exit code."""
    process = subprocess.Popen(arguments)
    case, since = 0, time.monotonic()
    try:
        while True:
            try:
                code = process.wait(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                now = _read(place)
                if now != case:
                    case, since = now, time.monotonic()
                if case and time.monotonic() - since > limit:
                    process.kill()
                    process.wait()
                    return f"no end after {limit:g} s", 1
    except BaseException:
        process.kill()
        process.wait()
        raise
    if code < 0:
        name = signal.Signals(-code)
        return (name.name if name in _CRASHES else ""), 128 - code
    return "", code


def _read(place: Path) -> int:
    try:
        return int(place.read_text() or 0)
    except FileNotFoundError:
        return 0
