"""The wheel of ``make dist`` under the versions that it promises: ``make test-matrix``, which takes pythonX.Y from the PATH.

``nox --list`` shows the sessions. An environment holds several gigabytes of torch, so each is removed when its tests have run.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.5.1"
nox.options.error_on_missing_interpreters = True
nox.options.default_venv_backend = "venv"

ROOT = Path(__file__).parent
# Every supported Python, the oldest and newest torch, the oldest and newest transformers, with few downloads.
VERSIONS = [
    ("3.10", "2.10.0", "4.57.6"),
    ("3.12", "2.11.0", "5.24.0"),
    ("3.11", "2.13.0", "5.24.0"),
    ("3.11", "2.14.1", "4.57.6"),
    ("3.13", "2.15.0", "5.24.0"),
]
# Ops, their golden cases, the choice of a backend, and stock models; the kernels themselves do not depend on Python or torch.
TESTS = ["packaging", "backends", "contract", "golden_*", "methods", "prune_families", "prune_generate", "prune_lifecycle"]


@nox.session
@nox.parametrize(("python", "torch", "transformers"), VERSIONS)
def matrix(session: nox.Session, torch: str, transformers: str) -> None:
    """Install the wheel beside these versions and run its tests from a folder without a checkout."""
    wheels = list((ROOT / "dist").glob("*.whl"))
    if len(wheels) != 1:
        session.error(f"expected one wheel in dist/, found {len(wheels)}: make dist builds it")
    folder = Path(session.create_tmp())
    shutil.rmtree(folder / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "tests", folder / "tests")
    session.install(
        "--no-cache-dir", f"torch=={torch}", f"transformers=={transformers}", "peft", "accelerate", "pillow", "rich"
    )
    session.install("--no-cache-dir", "pytest", "pytest-xdist", "hypothesis", "numpy")
    session.install("--no-deps", str(wheels[0]))
    session.chdir(folder)
    files = sorted(str(path.relative_to(folder)) for name in TESTS for path in folder.glob(f"tests/test_{name}.py"))
    environment = {"OMP_WAIT_POLICY": "passive", "VTKERNELS_REQUIRE_NATIVE": "1"}
    session.run("vtkernels", "info")
    session.run(
        "python", "-m", "pytest", "-q", "-n", "2", *files, "-k", "not triton and not sm_90 and not sm_80", env=environment
    )
    session.chdir(ROOT)
    shutil.rmtree(session.virtualenv.location)
