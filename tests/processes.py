"""Commands as processes of their own, several at a time, each with a time limit and a log."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """``code``: of the exit, or None of a process that was killed at its limit."""

    name: str
    code: int | None
    seconds: float
    log: Path

    def __str__(self) -> str:
        state = {0: "ok", None: "TIMEOUT"}.get(self.code, f"FAILED ({self.code})")
        return f"{self.name}: {state} {self.seconds:.1f} s" + f": {self.last_line()}" * (self.code != 0)

    def last_line(self) -> str:
        """Of the log: of a traceback, what was raised."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "nothing was printed"


def run_all(
    commands: Mapping[str, Sequence[str]], *, jobs: int, limit: float, logs: Path, environment: Mapping[str, str]
) -> Iterator[Ended]:
    """Runs ``commands`` by name and yields each as soon as it ends; what it printed is in ``logs/NAME.log``.

    A process leads a group of its own, which is killed at the limit with all that it started, and so are all that are left
    when the iteration is given up.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = list(commands.items())
    running: dict[str, tuple[subprocess.Popen[bytes], float, Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, command = waiting.pop(0)
                log = logs / f"{name}.log"
                with log.open("wb") as file:
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        start_new_session=True,
                    )
                running[name] = process, time.monotonic(), log
            time.sleep(0.05)
            for name, (process, start, log) in list(running.items()):
                seconds = time.monotonic() - start
                code = process.poll()
                if code is None and seconds < limit:
                    continue
                _kill(process)
                del running[name]
                yield Ended(name, code, seconds, log)
    finally:
        for process, _, _ in running.values():
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
