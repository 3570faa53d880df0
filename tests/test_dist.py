"""What ``make dist`` made and ``make test-dist`` installed: the files of wheel and sdist, and the installed package at work."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch

import vtkernels as vt
from vtkernels import _load

if "VTKERNELS_DIST" not in os.environ:
    pytest.skip("make test-dist installs the wheel and sets VTKERNELS_DIST", allow_module_level=True)

DIST = Path(os.environ["VTKERNELS_DIST"])
CHECKOUT = DIST.parent
INSTALLED = Path(vt.__file__).parent
# Neither the packager nor a build may leave anything else behind.
HOUSEKEEPING = re.compile(r"\.(ci/.*|gitignore)")
GENERATED = re.compile(r"PKG-INFO|setup\.cfg|vtkernels\.egg-info/.*")


def only(pattern: str) -> Path:
    found = list(DIST.glob(pattern))
    assert len(found) == 1, found
    return found[0]


def test_tests_run_on_the_installed_package():
    assert "site-packages" in INSTALLED.parts
    assert Path.cwd() != CHECKOUT


def test_one_wheel_serves_every_python():
    name = only("*.whl").name
    assert re.fullmatch(rf"vtkernels-{re.escape(vt.__version__)}-py3-none-manylinux_2_\d+_\w+\.whl", name), name
    assert int(re.search(r"manylinux_2_(\d+)", name)[1]) <= 28


def test_wheel_holds_the_package_and_nothing_else():
    with zipfile.ZipFile(only("*.whl")) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        data = message_from_bytes(wheel.read(next(name for name in names if name.endswith("/WHEEL"))))
    assert data["Root-Is-Purelib"] == "false"
    assert {name for name in names if name.endswith(".so")} == {
        "vtkernels/_native/libvtkernels.so",
        "vtkernels/_native/libvtkernels_torch.so",
    }
    tracked = subprocess.run(["git", "-C", CHECKOUT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    package = {name for name in tracked if name.startswith("vtkernels/")}
    benchmarks = {f"vtkernels/{name}" for name in tracked if re.fullmatch(r"benchmarks/\w+\.(py|json)", name)}
    rest = {name for name in names - package - benchmarks if ".dist-info/" not in name and not name.endswith(".so")}
    assert rest == set()
    assert package | benchmarks <= names


def test_sdist_is_the_repository():
    with tarfile.open(only("*.tar.gz")) as sdist:
        names = {entry.name.partition("/")[2] for entry in sdist.getmembers() if entry.isfile()}
    tracked = subprocess.run(["git", "-C", CHECKOUT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in names if not GENERATED.fullmatch(name)} == {x for x in tracked if not HOUSEKEEPING.fullmatch(x)}


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["info"], ["demo", "--help"], ["bench", "ops", "--help"], ["flops", "--keep", "64"]],
    ids=" ".join,
)
def test_command_runs(arguments):
    command = shutil.which("vtkernels", path=str(Path(sys.executable).parent))
    result = subprocess.run([command, *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout


def test_ops_run_natively():
    features, saliency = torch.randn(2, 64, 32), torch.rand(2, 64)
    assert vt.which("scope_select") == "native"
    with vt.backend("reference"):
        wanted = vt.scope_select(features, saliency, k=16)
    assert torch.equal(vt.scope_select(features, saliency, k=16), wanted)


def test_python_module_comes_with_the_sdist_alone():
    """``_host`` depends on the version of Python; the build from source makes it for the one at hand."""
    from_source = os.environ["VTKERNELS_INSTALLED"] == "sdist"
    assert (_load.why_no_host() == "") == from_source
    assert len(list(INSTALLED.glob("_host*"))) == from_source
