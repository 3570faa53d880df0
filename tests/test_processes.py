"""The runner of ``gpu_triton.py`` on stand-ins for an op's program: limits, logs, exit codes, what is left running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from processes import run_all

HERE = Path(__file__).parent
OK = "print('as the reference')"
FAILS = "print('compiling', flush=True); raise AssertionError('N=17 float16: other bits')"
HANGS = "import time; print('compiling', flush=True); time.sleep(600)"


def commands(**programs: str) -> dict[str, list[str]]:
    return {name: [sys.executable, "-c", program] for name, program in programs.items()}


def test_each_command_is_reported_as_it_ends(tmp_path):
    logs = tmp_path / "new" / "logs"
    programs = commands(hangs=HANGS, fails=FAILS, ok=OK)
    ended = {x.name: x for x in run_all(programs, jobs=3, limit=5, logs=logs, environment=os.environ)}
    assert list(ended)[-1] == "hangs"
    assert {name: x.code for name, x in ended.items()} == {"ok": 0, "fails": 1, "hangs": None}
    assert str(ended["ok"]).startswith("ok: ok ")
    assert str(ended["fails"]).endswith("s: AssertionError: N=17 float16: other bits")
    assert str(ended["fails"]).startswith("fails: FAILED (1) ")
    assert str(ended["hangs"]).startswith("hangs: TIMEOUT 5.") and str(ended["hangs"]).endswith(": compiling")
    assert (logs / "ok.log").read_text() == "as the reference\n"
    assert "Traceback" in (logs / "fails.log").read_text()


def test_no_more_than_jobs_run_at_a_time(tmp_path):
    """Each leaves a file while it runs and counts the files it sees."""
    program = f"""
import os, pathlib, time
here = pathlib.Path({str(tmp_path)!r}) / f"{{os.getpid()}}.running"
here.touch()
for _ in range(20):
    time.sleep(0.02)
    assert len(list(here.parent.glob("*.running"))) <= 2
here.unlink()
"""
    programs = commands(**{f"p{i}": program for i in range(5)})
    ended = list(run_all(programs, jobs=2, limit=60, logs=tmp_path / "logs", environment=os.environ))
    assert [x.code for x in ended] == [0] * 5


def alive(pid: int) -> bool:
    """A zombie that nobody has waited for is dead."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def test_nothing_survives_the_limit_or_a_caller_that_gives_up(tmp_path):
    """Not even what the command itself has started and left behind."""
    program = f"""
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path({str(tmp_path)!r}, f"{{child.pid}}.child").touch()
time.sleep(600)
"""
    (ended,) = run_all(commands(a=program), jobs=1, limit=2, logs=tmp_path, environment=os.environ)
    assert ended.code is None
    given_up = run_all(commands(a=program, b=OK), jobs=2, limit=60, logs=tmp_path, environment=os.environ)
    assert next(given_up).name == "b"
    while len(list(tmp_path.glob("*.child"))) < 2:
        time.sleep(0.02)
    given_up.close()
    deadline = time.monotonic() + 10  # a killed process is gone a moment later
    while any(alive(int(path.stem)) for path in tmp_path.glob("*.child")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_gpu_triton_reports_every_op_and_fails(tmp_path):
    """On a machine without a GPU each op fails, which is what is to be seen here: lines, logs, exit code."""
    program = [sys.executable, HERE / "gpu_triton.py", "compact_", "topk_select"]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parent)}
    result = subprocess.run(
        [*program, "--jobs", "2", "--limit", "60", "--logs", tmp_path], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1, result.stderr
    lines = sorted(result.stdout.splitlines())
    assert [line.partition(" (")[0] for line in lines] == ["compact_: FAILED", "topk_select: FAILED"]
    assert {path.name for path in tmp_path.iterdir()} == {"compact_.log", "topk_select.log"}
    assert "needs a GPU" in lines[0]
