"""Compiles the emulator with the kernels of csrc/include for this machine, once for every state of the sources."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-ffp-contract=off", "-fPIC", "-shared")


@functools.cache
def why_not() -> str:
    """What is missing to build, or nothing."""
    if compiler() is None:
        return "no C++ compiler (CXX, g++ or clang++)"
    return "" if importlib.util.find_spec("pybind11") else "pybind11 is not installed"


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


@functools.cache
def ops() -> ModuleType:
    """The launches of every op as a Python module."""
    import pybind11

    path = library("ops.cpp", pybind11.get_include(), sysconfig.get_paths()["include"])
    spec = importlib.util.spec_from_file_location("_emulator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def library(source: str, *includes: str) -> Path:
    """A shared library of one file of this folder, below ``build/``."""
    headers = [*(ROOT / "csrc" / "include").rglob("*.*h"), *FOLDER.glob("*.h"), FOLDER / source]
    command = [compiler(), *FLAGS]
    command += [f"-I{folder}" for folder in (ROOT / "csrc" / "include", FOLDER, *includes)]
    state = hashlib.sha256(" ".join(map(str, command)).encode())
    state.update(subprocess.run([compiler(), "--version"], capture_output=True, check=True).stdout)
    for path in sorted(headers):
        state.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    to = ROOT / "build" / "emulator" / f"{Path(source).stem}-{state.hexdigest()[:16]}.so"
    to.parent.mkdir(parents=True, exist_ok=True)
    with open(to.with_suffix(".lock"), "w") as lock:  # tests run in several processes, and one compiles for all
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not to.exists():
            unfinished = to.with_suffix(".part")
            result = subprocess.run([*command, str(FOLDER / source), "-o", str(unfinished)], capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{source} does not compile:\n{result.stderr}")
            unfinished.rename(to)
    return to
