"""The tree for the Hugging Face kernels hub: what it imports, what it exports, what it lists.

``make test-hub`` also builds it, sets ``VTKERNELS_HUB``, and loads it as a user of ``kernels`` does, beside this package.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cases import EXAMPLES, assert_same, example, run

import vtkernels as vt
from vtkernels import ops

ROOT = Path(__file__).parents[1]
if not (ROOT / "tools").is_dir():
    pytest.skip("tools/ is not beside these tests", allow_module_level=True)

tomllib = pytest.importorskip("tomllib", reason="tomllib came with Python 3.11")
built = pytest.mark.skipif("VTKERNELS_HUB" not in os.environ, reason="make test-hub builds the tree")


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    tool("export_hub").export(folder, "someone/vtkernels")
    return folder


@pytest.fixture(scope="module")
def package(tree) -> Path:
    return tree / "torch-ext" / "vtkernels"


# ------------------------------------------------------------------------------------------------ sources


def test_modules_are_python_3_9_and_import_torch_alone(package):
    """The hub's rules: syntax of Python 3.9, the kernel itself by relative imports, else torch and the standard library. Triton
    comes with torch where it exists, and is imported with the first launcher."""
    modules = sorted(package.rglob("*.py"))
    assert len(modules) > 30
    for path in modules:
        imported = set()
        for node in ast.walk(ast.parse(path.read_text(), feature_version=(3, 9))):
            if isinstance(node, ast.Import):
                imported |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
        allowed = {"torch", *sys.stdlib_module_names} | ({"triton"} if path.parent.name == "triton" else set())
        assert imported <= allowed, path


def test_relative_imports_find_their_modules(package):
    """``_ops`` is the one module that the kernel builder writes."""
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1] / (node.module or "").replace(".", "/")
                names = [""] if node.module else [f"/{name.name}" for name in node.names]
                for name in names:
                    found = Path(f"{base}{name}")
                    assert found.is_dir() or found.with_suffix(".py").exists() or found == package / "_ops", (path, found)


def test_public_names_are_the_ops(package):
    module = ast.parse((package / "__init__.py").read_text())
    listed = next(ast.literal_eval(node.value) for node in module.body if isinstance(node, ast.Assign))
    assert listed == sorted([*ops.__all__, "backend", "reference", "status", "which"])


def test_no_module_names_the_namespace_of_this_package(package):
    """Two versions of a kernel may live in one process: every op name must be made by the kernel builder."""
    for path in package.rglob("*.py"):
        strings = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert not [text for text in strings if isinstance(text, str) and re.search(r"\bvtkernels::\w", text)], path


def test_build_lists_every_source_once(tree):
    config = tomllib.loads((tree / "build.toml").read_text())
    kernels = config["kernel"].values()
    for backend in config["general"]["backends"]:
        parts = [config["torch"]["src"], *(part["src"] for part in kernels if part["backend"] == backend)]
        sources = [name for part in parts for name in part if not name.endswith((".h", ".cuh"))]
        assert len(sources) == len(set(sources))
        assert all((tree / name).is_file() for part in parts for name in part)
        there = {str(path.relative_to(tree)) for pattern in ("*.cpp", "*.cu") for path in tree.rglob(pattern)}
        assert there - set(sources) == (set() if backend == "cuda" else {name for name in there if name.endswith(".cu")})


def test_every_instruction_set_is_compiled_as_by_cmake(tree):
    """CMake gives the options as flags, the tree as a pragma."""
    flags = dict(re.findall(r"add_isa\((\w+)((?: [^)]*)?)\)", (ROOT / "CMakeLists.txt").read_text()))
    assert set(flags) - {"name"} == {"portable", "avx2", "avx512"}
    for name, options in tool("export_hub").ISA.items():
        wanted = {flag.removeprefix("-m") for flag in flags[name].split() if not flag.startswith("-W")}
        assert set(filter(None, options.split(","))) == wanted
        text = (tree / "csrc" / "cpu" / f"isa_{name}.cpp").read_text()
        assert f"#define VTKERNELS_ISA {name}\n#define VTKERNELS_ISA_{name}\n" in text


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(SystemExit, match="is not a tree of this script"):
        tool("export_hub").export(tmp_path, "someone/vtkernels")
    assert (tmp_path / "thesis.txt").exists()


# ------------------------------------------------------------------------------------------------ as built


@pytest.fixture(scope="module")
def kernel():
    from kernels import get_local_kernel

    return get_local_kernel(Path(os.environ["VTKERNELS_HUB"]))


@built
def test_kernel_and_package_live_in_one_process(kernel, monkeypatch):
    """Namespaces of their own, the same bits."""
    namespace = sys.modules[f"{kernel.__name__}._namespace"]
    assert namespace.NAMESPACE == kernel.__name__ != "vtkernels"
    for op in EXAMPLES:
        assert kernel.which(op) == vt.which(op)
        wanted = run(op, example(op, n=151, lengths=True))
        with monkeypatch.context() as patch:
            patch.setattr("cases.vt", kernel)
            assert_same(run(op, example(op, n=151, lengths=True)), wanted, kernel.which(op))


@built
def test_build_file_is_what_the_kernels_package_reads():
    from kernels._rust import Backend, Build

    assert Build.open(os.environ["VTKERNELS_HUB"]).general.backends == [Backend.CPU, Backend.CUDA]


@built
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
def test_module_needs_torch_and_the_system_alone():
    (library,) = Path(os.environ["VTKERNELS_HUB"]).glob("build/*/*.abi3.so")
    shown = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    needed = {name.partition(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", shown)}
    assert needed <= {"libtorch_cpu", "libc10", "libstdc++", "libm", "libgcc_s", "libc", "ld-linux-x86-64", "ld-linux-aarch64"}
