"""What a figure depends on besides the code: the columns that every row of every CSV ends with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import torch

import vtkernels

PLACE = ("threads", "device", "machine", "python", "torch", "triton", "cuda", "driver", "vtkernels", "commit", "time")


def environment(device: torch.device | None = None) -> dict[str, str]:
    """The columns of ``PLACE`` as they are now; ``triton``, ``cuda`` and ``driver`` are empty where nothing uses them.

    ``device`` is what runs: torch's default device if None.
    """
    device = device or torch.get_default_device()
    gpu = device.type == "cuda"
    return {
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if gpu else f"{processor()}, {torch.backends.cpu.get_cpu_capability()}",
        "machine": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton") if gpu else "",
        "cuda": str(torch.version.cuda or torch.version.hip or "") if gpu else "",
        "driver": _driver() if gpu else "",
        "vtkernels": vtkernels.__version__,
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def threads(count: str | int) -> str:
    """A number of threads in words."""
    return f"{count} thread{'' if int(count) == 1 else 's'}"


def machine() -> str:
    """The processor and how many of its cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores"


@lru_cache
def processor() -> str:
    """The processor as it names itself; virtual machines often give no more than a brand, so with family and model."""
    known: dict[str, str] = {}
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            known.setdefault(name.strip(), value.strip())
    name = known.get("model name") or platform.processor() or platform.machine()
    return name + (f" (family {known['cpu family']} model {known['model']})" if "model" in known else "")


@lru_cache
def commit() -> str:
    """The commit of the ``vtkernels`` that runs, ``+`` where its sources were changed since; ``unknown`` outside a checkout.

    ``VTKERNELS_COMMIT`` says it where the sources were copied without their history.
    """
    if given := os.environ.get("VTKERNELS_COMMIT"):
        return given
    root = Path(vtkernels.__file__).resolve().parents[1]
    if _git(root, "rev-parse", "--show-toplevel") != str(root):  # an installed package may lie inside someone's repository
        return "unknown"
    changed = _git(root, "status", "--porcelain", "csrc", "vtkernels", "benchmarks/*.py")
    return (_git(root, "rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")


def _git(root: Path, *arguments: str) -> str:
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True).stdout.strip()


def version(package: str) -> str:
    """What is installed of it; empty where it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@lru_cache
def _driver() -> str:
    """The driver of the current GPU as nvidia-smi gives it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.partition("\n")[0].strip()
