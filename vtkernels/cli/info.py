"""``vtkernels info``: what is installed, what the processor can do, and which backend runs each op."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from vtkernels.cli import _console, _plans

_PACKAGES = ("torch", "triton", "transformers", "pillow", "matplotlib", "rich", "numpy")
_VARIABLES = {
    "VTKERNELS_BACKEND": "auto, native, triton or reference",
    "VTKERNELS_NATIVE": "0 switches the native library off",
    "VTKERNELS_SIMD": "caps the SIMD level",
    "VTKERNELS_TRITON_TABLE": "launch parameters written by vtkernels tune",
    "TRITON_INTERPRET": "1 runs Triton kernels on CPU tensors, to look into them",
}
_EXAMPLES = """examples:
  vtkernels info
  vtkernels info --json > machine.json     for a bug report or next to a benchmark
  VTKERNELS_NATIVE=0 vtkernels info        what runs without the native library
  vtkernels info --plan 576 1024 64        how the CUDA kernels are launched for such an image, without a GPU
  vtkernels info --plan 2880 1024 320 --arch 80 --batch 4
"""


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "info",
        help="versions, processor, backends",
        description="Versions, processor, SIMD level, threads; which backend runs each op on each device,\n"
        "and why another one is not available.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    _plans.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Print what :func:`collect` finds, or launch plans."""
    if options.plan is not None:
        return _plans.run(options)
    facts = collect()
    if options.json:
        print(json.dumps(facts, indent=2))
        return 0
    native, machine = facts["native"], facts["machine"]
    rows = [[name, version or "not installed"] for name, version in facts["versions"].items()]
    rows += [
        ["system", machine["system"]],
        ["processor", machine["cpu"]],
        ["threads", f"{machine['threads']} of {machine['cpus']} logical processors"],
        ["GPU", ", ".join(machine["gpus"]) or "none visible to torch"],
        ["native library", native["library"] or f"none: {native['reason']}"],
    ]
    if machine["planner"]:
        fits = ", ".join(f"{count} of {size}" for size, count in machine["planner"]["clusters"].items())
        rows.append(["clusters of blocks at a time", fits])
    if native["library"]:
        rows.append(["SIMD level", f"{native['simd']} (this machine can run {', '.join(native['simd_levels'])})"])
        rows += [[f"build: {name}", str(value)] for name, value in native["build"].items()]
        rows.append(["vtkernels._host", f"none: {native['no_host']}" if native["no_host"] else "present (info --plan, tests)"])
    _console.table(["", ""], rows, title="vtkernels", left=2)

    devices = list(next(iter(facts["ops"].values())))
    _console.table(
        ["op", *(f"runs on {device}" for device in devices)],
        [[op, *places.values()] for op, places in facts["ops"].items()],
        title=f"\nBackend of each op (choice: {facts['backend']})",
        left=1 + len(devices),
    )
    _console.table(
        ["backend", "device", "available", "reason"],
        [[row["backend"], row["device"], "yes" if row["available"] else "no", row["reason"]] for row in facts["backends"]],
        title="\nBackends",
        left=4,
    )
    _console.table(
        ["variable", "value", "meaning"],
        [[name, "unset" if value is None else value, _VARIABLES[name]] for name, value in facts["environment"].items()],
        title="\nEnvironment",
        left=3,
    )
    return 0


def collect() -> dict[str, Any]:
    """Everything ``info`` shows, as plain data that JSON can hold."""
    import torch

    import vtkernels as vt
    from vtkernels import _load, backends
    from vtkernels._schemas import SCHEMAS

    devices = ("cpu", "cuda")
    states = {(name, device): vt.status(name, device) for name in backends.BACKENDS for device in devices}
    return {
        "versions": {"vtkernels": vt.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in _PACKAGES},
        "machine": {
            "system": platform.platform(),
            "cpu": _cpu(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())],
            "planner": _load.gpu(),
        },
        "native": {
            "library": str(_load.NATIVE) if _load.NATIVE else None,
            "reason": _load.WHY_NOT,
            "simd": _load.simd_level(),
            "simd_levels": _load.simd_levels(),
            "build": _load.build_info(),
            "no_host": _load.why_no_host(),
        },
        "backend": os.environ.get("VTKERNELS_BACKEND") or "auto",
        "ops": {op: {device: vt.which(op, device) for device in devices} for op in SCHEMAS},
        "backends": [
            {"backend": name, "device": device, "available": state.available, "reason": state.reason}
            for (name, device), state in states.items()
        ],
        "environment": {name: os.environ.get(name) for name in _VARIABLES},
    }


def _version(package: str) -> str | None:
    """From the metadata: importing triton or transformers just for a number costs seconds, or fails."""
    if package == "torch":
        loaded: str = sys.modules["torch"].__version__
        return loaded
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()
