"""``benchmarks/gpu.sh`` against a Python, a profiler and a sanitizer that are stand-ins: order, limits, what is left when it is
cut off. ``make rehearse-gpu`` runs the real commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
pytestmark = pytest.mark.skipif(
    not SCRIPT.exists() or any(shutil.which(name) is None for name in ("bash", "timeout")),
    reason="needs a checkout, bash and GNU timeout",
)
STEPS = ("machine", "build", "triton", "tests", "prune", "sanitize", "memory", "ops", "ncu", "scaling", "model", "hazards")
BESIDE = STEPS[2:6]

# What the step called $1 does: FAKE_step=fail, FAKE_step=hang, or nothing, and it passes.
STAND_IN = """#!/usr/bin/env bash
step=other
case "$*" in
  *--version*) echo "Python 3.99"; exit ;;
  *get_device_capability*) echo 9.0; exit ;;
  *benchmarks.machine*) step=machine ;;
  *"pip install"*) step=build ;;
  *gpu_triton*) step=triton ;;
  *test_cuda_gpu*"-k not allocator"*) step=tests ;;
  *test_cuda_gpu*) step=memory ;;
  *test_prune_gpu*) step=prune ;;
  *"benchmarks ops"*) step=ops ;;
  *"benchmarks scaling"*) step=scaling ;;
  *"benchmarks model"*) step=model ;;
  *memcheck*) step=sanitize ;;
  *synccheck*|*racecheck*|*initcheck*) step=hazards ;;
  *cuda_small*--headline*) step=ncu ;;
esac
echo "$step begins: TRITON_INTERPRET=$TRITON_INTERPRET commit $VTKERNELS_COMMIT"
while (($#)); do [[ $1 == --out ]] && echo "$step" >"$2"; shift; done
what=FAKE_$step
case "${!what:-}" in
  fail) echo "$step is broken"; exit 3 ;;
  hang) sleep 60 ;;
esac
echo "$step ends"
"""


@pytest.fixture
def machine(tmp_path):
    """A folder of stand-ins, and the command that runs the script with them."""
    for place in ("bin/nvidia-smi", "bin/ncu", "bin/compute-sanitizer", "python"):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_text(STAND_IN)
        path.chmod(0o755)

    def start(*arguments: str, **environment: str) -> subprocess.Popen:
        command = ["bash", str(SCRIPT), "--python", str(tmp_path / "python"), "--out", str(tmp_path / "out"), *arguments]
        where = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CUDA_HOME": str(tmp_path)} | environment
        return subprocess.Popen(
            command, env=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    return start


def summary(tmp_path: Path) -> dict[str, str]:
    """Step -> its line."""
    lines = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    return {line.split()[0]: line for line in lines[1:] if line}


def run(machine, *arguments: str, **environment: str) -> tuple[int, str]:
    process = machine(*arguments, **environment)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def test_runs_every_step_in_its_order_and_names_what_it_ran(machine, tmp_path):
    code, output = run(machine, VTKERNELS_COMMIT="abc1234")
    lines = summary(tmp_path)
    assert code == 0, output
    order = [name for name in lines if name in STEPS]
    assert (*order[:2], *BESIDE, *order[6:]) == STEPS and set(order[2:6]) == set(BESIDE)
    assert all("passed" in lines[name] for name in STEPS)
    assert output.splitlines()[-1].startswith("all passed")
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "[tests] tests begins: TRITON_INTERPRET=0 commit abc1234" in log
    assert "[triton] triton ends" in log
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("summary.txt", "log.txt", "machine.json", "ops.csv", "scaling.csv", "model.csv")
    }  # and cuda.xml and ncu.csv, which the stand-ins do not write: eight


def test_failure_stops_nothing_but_a_build(machine, tmp_path):
    code, output = run(machine, FAKE_tests="fail", FAKE_hazards="fail", FAKE_triton="fail")
    lines = summary(tmp_path)
    assert code == 1
    assert "FAILED (3)" in lines["tests"] and lines["tests"].endswith("tests is broken")
    assert "FAILED (3)" in lines["triton"] and lines["triton"].endswith("triton is broken")
    assert "FAILED (1)" in lines["hazards"]  # information: it does not decide
    assert output.splitlines()[-1].startswith("2 not passed")
    assert all("passed" in lines[name] for name in STEPS if name not in ("tests", "hazards", "triton"))

    shutil.rmtree(tmp_path / "out")
    code, output = run(machine, FAKE_build="fail")
    assert code == 1
    assert "stopped: without the CUDA kernels" in output.splitlines()[-1]
    assert set(summary(tmp_path)) == {"machine", "build", "stopped:"}


def test_step_is_cut_off_and_what_has_no_time_is_named(machine, tmp_path):
    code, _ = run(machine, "--limit", "7", FAKE_tests="hang")
    lines = summary(tmp_path)
    assert code == 1
    assert "CUT OFF" in lines["tests"]
    assert "no time left" in lines["ops"] and "no time left" in lines["model"]
    assert "tests begins" in (tmp_path / "out" / "log.txt").read_text()


def test_killed_run_leaves_what_it_had(machine, tmp_path):
    process = machine(FAKE_ops="hang")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (tmp_path / "out" / "ops.csv").exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    lines = summary(tmp_path)
    assert all("passed" in lines[name] for name in ("machine", "build", "tests", "triton", "memory"))
    assert "ops" not in lines
    assert (tmp_path / "out" / "ops.csv").read_text() == "ops\n"
    subprocess.run(["pkill", "-f", str(tmp_path / "python")], check=False)  # timeout leads a group of its own


def test_only_runs_what_it_names(machine, tmp_path):
    code, _ = run(machine, "--only", "ops,tests")
    assert code == 0
    assert [name for name in summary(tmp_path) if name in STEPS] == ["tests", "ops"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--limit", "soon"), "--limit must be a whole number of seconds, got 'soon'"),
        (("--only", "ops,tea"), "--only: no step is called 'tea'; there are: machine build"),
        (("--fast",), "unknown argument '--fast'"),
        (("--python", "/no/such/python"), "no such Python: '/no/such/python'"),
        (("--limit",), "--limit needs a value"),
    ],
)
def test_arguments_that_do_not_work_are_named(machine, tmp_path, arguments, words):
    code, output = run(machine, *arguments)
    assert code == 2
    assert words in output and "--help" in output
    assert not (tmp_path / "out").exists()


def test_without_a_folder_it_says_so():
    result = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert result.returncode == 2
    assert "--out must name the folder of the results" in result.stderr


def test_help_names_every_step_and_shows_examples():
    result = subprocess.run(["bash", str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    lines = [line.split()[0] for line in result.stdout.splitlines() if line[:2] == "  " and line[2:3].strip()]
    assert tuple(name for name in lines if name in STEPS) == STEPS
    assert "examples:" in result.stdout and "--rehearse" in result.stdout
