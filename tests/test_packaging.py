"""What an installation asks of the system: old enough versions of its libraries, and no particular Python."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import vtkernels as vt
from vtkernels import _load
from vtkernels._schemas import SCHEMAS
from vtkernels.cli import _plans, main
from vtkernels.cli._errors import UsageError

if not vt.status("native").available:
    assert os.environ.get("VTKERNELS_REQUIRE_NATIVE") != "1", vt.status("native").reason
    pytest.skip(vt.status("native").reason, allow_module_level=True)

LIBRARIES = sorted(_load.NATIVE.parent.iterdir())
# manylinux_2_28, which torch's own wheels keep to
CEILING = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
# None in sys.modules is how Python says that a module cannot be imported.
WITHOUT_HOST = "import sys; sys.modules['vtkernels._host'] = None; "


def python(code: str, **environment: str) -> str:
    command = [sys.executable, "-c", WITHOUT_HOST + code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment).stdout


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_asks_for_no_newer_system_than_manylinux_2_28(library):
    table = subprocess.run(["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True).stdout
    asked = re.findall(r"U (\w+)@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)$", table, re.MULTILINE)
    assert {family for _, family, _ in asked} >= {"GLIBC", "GLIBCXX"}
    newer = [
        f"{symbol} of {family}_{version}"
        for symbol, family, version in asked
        if tuple(int(part) for part in version.split(".")) > CEILING[family]
    ]
    assert newer == [], "cmake/old_glibc.cmake and csrc/torch/single_threaded.cpp name older ones"


def test_holds_nothing_but_the_two_libraries():
    assert [path.name.partition(".")[0] for path in LIBRARIES] == ["libvtkernels", "libvtkernels_torch"]


def test_every_op_is_native_without_the_python_module():
    code = "import json, vtkernels as vt; print(json.dumps({op: vt.which(op) for op in vt.backends.SCHEMAS}))"
    assert json.loads(python(code)) == {op: vt.which(op) for op in SCHEMAS}


def test_instruction_set_is_chosen_and_refused_without_the_python_module():
    code = "from vtkernels import _load; print(_load.host(), _load.simd_level(), *_load.simd_levels())"
    assert python(code, VTKERNELS_SIMD="portable").split() == ["None", "portable", *_load.simd_levels()]
    with pytest.raises(subprocess.CalledProcessError) as refused:
        python("import vtkernels", VTKERNELS_SIMD="mmx")
    assert "VTKERNELS_SIMD must be one of portable" in refused.value.stderr


@pytest.fixture
def no_host(monkeypatch):
    monkeypatch.setitem(sys.modules, "vtkernels._host", None)


def test_info_tells_all_but_the_plans_without_the_python_module(no_host, capsys):
    assert main(["info", "--json"]) == 0
    native = json.loads(capsys.readouterr().out)["native"]
    assert (native["simd"], native["simd_levels"]) == (_load.simd_level(), _load.simd_levels())
    assert native["build"] == _load.build_info()
    assert native["build"]["version"] == vt.__version__
    assert native["no_host"] == _load.why_no_host()
    with pytest.raises(UsageError, match=r"the planner of vtkernels\._host, which is missing: "):
        _plans.collect(5, 16, 2, arch=90, batch=1, heads=1)


def test_reason_names_the_python_that_the_module_was_built_for(no_host, monkeypatch, tmp_path):
    this = re.escape(sys.implementation.cache_tag)
    monkeypatch.setattr(_load, "__file__", str(tmp_path / "_load.py"))
    assert re.match("wheels carry none; no op needs it", _load.why_no_host())
    (tmp_path / "_host.cpython-39-x86_64-linux-gnu.so").touch()
    assert re.match(f"built for cpython-39-x86_64-linux-gnu, this is {this}; no op", _load.why_no_host())
