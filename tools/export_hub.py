"""Writes the op layer as a source tree of the Hugging Face kernels hub: ``python tools/export_hub.py build/hub``.

The tree holds what needs torch alone: ops, references, Triton kernels and their native library, no methods and no integrations.
Files of ``vtkernels`` keep their text but for imports, which become relative; ``tools/hub`` is laid over them. The hub's
kernel-builder compiles the tree, or ``tools/build_hub.py`` its CPU part.
"""

from __future__ import annotations

import argparse
import ast
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ["_checks.py", "_schemas.py", "backends.py", "ops.py", "py.typed", "reference/*.py", "triton/*.py", "triton/*.json"]
# The op namespace is the kernel builder's to give; native libraries are loaded by its module, not from a folder.
REPLACED = {"_ops": "_namespace"}
ISA = {  # instruction set: what it is compiled for, as CMakeLists.txt has it
    "portable": "",
    "avx2": "avx2,fma,f16c",
    "avx512": "avx512f,avx2,fma,f16c,prefer-vector-width=512",
}
VERSION = 1  # of the kernel, the hub's major version: raised when its API changes


def export(folder: Path, repo_id: str) -> None:
    """Write the tree into ``folder``, which is replaced."""
    if folder.exists() and not (folder / "build.toml").exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not a tree of this script (no build.toml), so it is not replaced; name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "torch-ext" / "vtkernels"
    for pattern in PYTHON:
        for source in sorted((ROOT / "vtkernels").glob(pattern)):
            target = package / source.relative_to(ROOT / "vtkernels")
            target.parent.mkdir(parents=True, exist_ok=True)
            text = source.read_text()
            target.write_text(relative(text, len(target.relative_to(package).parts)) if source.suffix == ".py" else text)
    (package / "__init__.py").write_text(public())
    for name in ("include", "cpu", "cuda", "torch"):
        shutil.copytree(ROOT / "csrc" / name, folder / "csrc" / name)
    for name in ("about.cpp", "build_info.h.in"):  # for the command line, which stays behind
        (folder / "csrc" / "cpu" / name).unlink()
    for name, options in ISA.items():
        (folder / "csrc" / "cpu" / f"isa_{name}.cpp").write_text(one_isa(name, options))
    (folder / "csrc" / "cpu" / "isa_kernels.cpp").rename(folder / "csrc" / "cpu" / "isa_kernels.h")
    shutil.copytree(ROOT / "tools" / "hub", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", folder)
    card = folder / "CARD.md"
    card.write_text(card.read_text().replace("@REPO_ID@", repo_id).replace("@VERSION@", str(VERSION)))
    (folder / "build.toml").write_text(build_toml(folder, repo_id))


def relative(text: str, depth: int) -> str:
    """``from vtkernels.x import y`` as seen from a module ``depth`` levels below the package."""

    def replace(found: re.Match) -> str:
        path = found[1].removeprefix(".")
        return f"from {'.' * depth}{REPLACED.get(path, path)} import"

    return re.sub(r"^from vtkernels((?:\.\w+)*) import", replace, text, flags=re.MULTILINE)


def public() -> str:
    """``__init__.py``: the ops, their definitions and the choice of a backend."""
    tree = ast.parse((ROOT / "vtkernels" / "ops.py").read_text())
    names = next(ast.literal_eval(x.value) for x in tree.body if isinstance(x, ast.Assign) and x.targets[0].id == "__all__")
    listed = sorted([*names, "backend", "reference", "status", "which"])
    lines = "".join(f"    {name},\n" for name in names)
    return (
        '"""Fused kernels for training-free visual token pruning: the ops of vtkernels."""\n\n'
        "from . import reference\n"
        "from .backends import backend, status, which\n"
        f"from .ops import (\n{lines})\n\n"
        "__all__ = [\n" + "".join(f'    "{name}",\n' for name in listed) + "]\n"
    )


def one_isa(name: str, options: str) -> str:
    """The kernels for one instruction set: by a pragma, since a flag would have to suit every processor of the hub."""
    text = f'#define VTKERNELS_ISA {name}\n#define VTKERNELS_ISA_{name}\n#include "isa_kernels.h"\n'
    if not options:
        return text
    return f'#if defined(__x86_64__)\n#pragma GCC target("{options}")\n{text}#endif\n'


def build_toml(folder: Path, repo_id: str) -> str:
    """What the kernel builder compiles: the adapters with torch, the kernels for each backend."""

    def listed(*patterns: str) -> str:
        names = sorted(str(path.relative_to(folder)) for pattern in patterns for path in folder.glob(pattern))
        return "[\n" + "".join(f'  "{name}",\n' for name in names) + "]"

    cpu = listed("csrc/cpu/*", "csrc/include/vtkernels/*.h", "csrc/include/vtkernels/cuda/plan.h")
    cuda = listed("csrc/cuda/*", "csrc/include/vtkernels/*.h", "csrc/include/vtkernels/cuda/*")
    torch = listed("torch-ext/torch_binding.*", "csrc/torch/*", "csrc/include/vtkernels/*.h", "csrc/include/vtkernels/cuda/*")
    # No contraction anywhere: the order of every sum is part of the contract.
    return f'''[general]
name = "vtkernels"
version = {VERSION}
edition = 5
license = "Apache-2.0"
backends = ["cpu", "cuda"]

[general.hub]
repo-id = "{repo_id}"

[torch]
include = ["csrc/include"]
pyext = ["py", "json", "typed"]
src = {torch}

[torch.stable-abi]
cpu = "2.10"
cuda = "2.10"

[kernel.cpu]
backend = "cpu"
depends = ["torch"]
include = ["csrc/include"]
cxx-flags = ["-ffp-contract=off"]
src = {cpu}

[kernel.cpu_beside_cuda]
backend = "cuda"
depends = ["torch"]
include = ["csrc/include"]
cxx-flags = ["-ffp-contract=off"]
src = {cpu}

[kernel.cuda]
backend = "cuda"
depends = ["torch"]
include = ["csrc/include"]
cuda-capabilities = ["8.0", "9.0a", "10.0"]
cuda-flags = ["--fmad=false"]
src = {cuda}
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="the tree to write; replaced if this script wrote it")
    parser.add_argument("--repo-id", default="vtkernels/vtkernels", help="repository of the hub (default: %(default)s)")
    options = parser.parse_args()
    export(options.folder, options.repo_id)
    print(f"{options.folder}: a kernel of the hub, for {options.repo_id}")


if __name__ == "__main__":
    main()
