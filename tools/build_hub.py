"""Compiles the CPU part of a tree of ``tools/export_hub.py`` into ``build/<variant>`` of that tree, where ``kernels`` loads it.

A stand-in for the hub's kernel-builder, which needs Nix: it reads the same ``build.toml`` and makes the same layout, so that
what the tree lacks shows here. Needs Python 3.11, a C++17 compiler, ninja and torch. What is published comes from the
kernel-builder.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import tomllib

# Both files are the kernel builder's to write; these do what the tree needs of them.
REGISTRATION = """#pragma once
#include <Python.h>

#define HUB_JOIN_(a, b) a##b
#define HUB_JOIN(a, b) HUB_JOIN_(a, b)
#define HUB_TEXT_(a) #a
#define HUB_TEXT(a) HUB_TEXT_(a)
#define REGISTER_EXTENSION(name)                                              \\
  PyMODINIT_FUNC HUB_JOIN(PyInit_, name)() {                                  \\
    static PyModuleDef module = {PyModuleDef_HEAD_INIT, HUB_TEXT(name), nullptr, 0, nullptr}; \\
    return PyModule_Create(&module);                                          \\
  }
"""
OPS = """import torch

from . import {id}

ops = torch.ops.{id}


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{id}::{{op_name}}"
"""


def build(tree: Path) -> Path:
    """Compile ``tree`` and return the folder of the variant."""
    config = tomllib.loads((tree / "build.toml").read_text())
    general, target = config["general"], config["torch"]["stable-abi"]["cpu"]
    unique = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(tree.glob("*/**/*")) if source(path))).hexdigest()[:7]
    identifier = f"_{general['name']}_cpu_{unique}"
    variant = tree / "build" / f"torch-stable-abi{target.replace('.', '')}-cpu-{platform.machine()}-linux"
    scratch = tree / ".objects"
    scratch.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(variant, ignore_errors=True)
    shutil.copytree(tree / "torch-ext" / general["name"], variant)
    (scratch / "registration.h").write_text(REGISTRATION)
    (variant / "_ops.py").write_text(OPS.format(id=identifier))
    library = variant / f"{identifier}.abi3.so"
    (scratch / "build.ninja").write_text(ninja(tree, scratch, config, identifier, target, library))
    subprocess.run(["ninja", "-C", str(scratch), "--quiet"], check=True)
    (variant / "metadata.json").write_text(json.dumps(metadata(general, identifier, variant), indent=2))
    return variant


def source(path: Path) -> bool:
    return path.is_file() and path.suffix in (".cpp", ".h", ".py")


def ninja(tree: Path, scratch: Path, config: dict, identifier: str, target: str, library: Path) -> str:
    """One edge for each C++ source that ``build.toml`` gives the CPU, and one for the module."""
    torch = Path(find_spec("torch").origin).parent
    major, minor = (int(part) for part in target.split("."))
    define = {
        "TORCH_EXTENSION_NAME": identifier,
        "TORCH_TARGET_VERSION": hex(major << 56 | minor << 48),
        "CPU_KERNEL": "1",
        "Py_LIMITED_API": "0x03090000",
        "NDEBUG": "1",
    }
    system = [torch / "include", sysconfig.get_paths()["include"], scratch]
    flags = [
        "-std=c++17 -O3 -fPIC -fvisibility=hidden -fno-gnu-unique",
        *(f"-D{name}={value}" for name, value in define.items()),
    ]
    flags += [f"-isystem {folder}" for folder in system]
    lines = [
        f"cxx = {os.environ.get('CXX', 'c++')}",
        "rule compile",
        f"  command = $cxx {' '.join(flags)} $own -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "rule link",
        f"  command = $cxx -shared $in -o $out -Wl,--as-needed {torch}/lib/libtorch_cpu.so {torch}/lib/libc10.so",
    ]
    objects = []
    parts = [config["torch"], *(part for part in config["kernel"].values() if part["backend"] == "cpu")]
    for part in parts:
        own = " ".join([*(f"-I{tree / folder}" for folder in part["include"]), *part.get("cxx-flags", [])])
        for name in part["src"]:
            if not (tree / name).is_file():
                raise SystemExit(f"build.toml lists {name}, which is not in {tree}")
            if name.endswith(".cpp"):
                objects.append(f"{name.replace('/', '_')}.o")
                lines += [f"build {objects[-1]}: compile {tree / name}", f"  own = {own}"]
    return "\n".join([*lines, f"build {library}: link {' '.join(objects)}", ""])


def metadata(general: dict, identifier: str, variant: Path) -> dict:
    digests = {
        str(path.relative_to(variant)): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(variant.rglob("*"))
        if path.is_file()
    }
    return {
        "id": identifier,
        "name": general["name"],
        "version": general["version"],
        "license": general["license"],
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {"algorithm": "sha256", "files": digests},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tree", type=Path, help="a tree of tools/export_hub.py")
    variant = build(parser.parse_args().tree.resolve())
    print(f"{variant}: built for torch {version('torch')} and later of its stable ABI")


if __name__ == "__main__":
    main()
