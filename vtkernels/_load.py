"""Finds the native library and keeps the reason if it cannot be used."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

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
    _check_simd(os.environ.get("VTKERNELS_SIMD"))
    return found[0], None


def _check_simd(wanted: str | None) -> None:
    """The library takes the best level when it does not know the name; an explicit wish must not pass silently."""
    if wanted is None:
        return
    levels = importlib.import_module("vtkernels._host").simd_levels()
    if wanted not in levels:
        raise ValueError(f"VTKERNELS_SIMD must be one of {', '.join(levels)} on this machine, got {wanted!r}")


def host() -> ModuleType | None:
    """``vtkernels._host`` (build information, SIMD level), or None where the native library is not in use."""
    return importlib.import_module("vtkernels._host") if NATIVE is not None else None


NATIVE, WHY_NOT = _load()
