"""Finds the native library and keeps the reason if it cannot be used."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

_FOLDER = Path(__file__).parent / "_native"


def _load() -> tuple[Path | None, str | None]:
    if os.environ.get("VTKERNELS_NATIVE", "1") == "0":
        return None, "switched off by VTKERNELS_NATIVE=0"
    found = sorted(_FOLDER.glob("libvtkernels_torch.*"))
    if not found:
        return None, f"not built: no libvtkernels_torch in {_FOLDER} (install from source with a C++17 compiler)"
    try:
        torch.ops.load_library(found[0])
    except OSError as error:
        return None, f"{found[0].name} does not load under torch {torch.__version__}: {error}"
    _check_simd(found[0], os.environ.get("VTKERNELS_SIMD"))
    return found[0], None


def _check_simd(library: Path, wanted: str | None) -> None:
    """The library takes the best level when it does not know the name; an explicit wish must not pass silently."""
    if wanted is None:
        return
    levels = _says(library, "simd_levels").split()
    if wanted not in levels:
        raise ValueError(f"VTKERNELS_SIMD must be one of {', '.join(levels)} on this machine, got {wanted!r}")


def _says(library: Path, name: str, *arguments: int) -> str:
    """A C function of ``csrc/cpu/about.cpp`` or ``csrc/cuda/gpu.cu``. By ctypes: the op path serves every Python with
    one file."""
    function = getattr(ctypes.CDLL(str(next(library.parent.glob("libvtkernels.*")))), f"vtkernels_{name}")
    function.restype = ctypes.c_char_p
    words: bytes = function(*arguments)
    return words.decode()


def build_info() -> dict[str, Any]:
    """What the native library was built with; empty where it is not in use."""
    info: dict[str, Any] = json.loads(_says(NATIVE, "build_info")) if NATIVE else {}
    return info


def gpu(device: int = 0) -> dict[str, Any]:
    """A GPU as the launch planner sees it, among it how many clusters of 2, 4 and 8 blocks with all of their shared memory run
    at a time; empty without one, or without kernels for it."""
    if NATIVE is None or not build_info().get("cuda") or not torch.cuda.is_available():
        return {}
    found: dict[str, Any] = json.loads(_says(NATIVE, "gpu", device) or "{}")
    return found


def simd_level() -> str | None:
    """The instruction set in use, or None where the native library is not."""
    return _says(NATIVE, "simd_level") if NATIVE else None


def simd_levels() -> list[str]:
    """The instruction sets that library and machine share, the best last."""
    return _says(NATIVE, "simd_levels").split() if NATIVE else []


def host() -> ModuleType | None:
    """``vtkernels._host`` (launch planner, test hooks), or None: :func:`why_no_host` says why. No op needs it."""
    return None if why_no_host() else importlib.import_module("vtkernels._host")


def why_no_host() -> str:
    """Why there is no ``vtkernels._host``: it is built for one version of Python, and wheels carry none."""
    if NATIVE is None:
        return f"the native library is not in use: {WHY_NOT}"
    if importlib.util.find_spec("vtkernels._host") is not None:
        return ""
    others = [built.name.split(".")[1] for built in sorted(Path(__file__).parent.glob("_host.*"))]
    what = f"built for {', '.join(others)}, this is {sys.implementation.cache_tag}" if others else "wheels carry none"
    return f"{what}; no op needs it, and an installation from source builds it"


NATIVE, WHY_NOT = _load()
