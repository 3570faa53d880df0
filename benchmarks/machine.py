"""What this machine's GPU reaches, whatever runs on it: ``python -m benchmarks.machine --out machine.json``.

Two ceilings that every other figure is held against: a large copy (bytes read plus bytes written) and a large float16 matrix
product. Needs torch alone, so that it runs before anything is built; ``--planner`` adds what the built library asks the driver.
What is known is written at once, and again when more is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.machine", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON file to write")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal (default: %(default)s)")
    parser.add_argument("--planner", action="store_true", help="only add the GPU as the launch planner sees it to the file")
    options = parser.parse_args()
    if options.planner:
        return add_planner(options.out)
    facts = versions()

    def write() -> None:
        options.out.write_text(json.dumps(facts, indent=1) + "\n")

    write()
    if options.device == "cuda":
        facts |= device()
        write()
    side = 8192 if options.device == "cuda" else 512
    facts["copy_gb_s"] = round(copy(options.device, side * side) / 1e9, 1)
    write()
    facts["matmul_tflop_s"] = round(product(options.device, side) / 1e12, 2)
    write()
    print(json.dumps(facts))


def add_planner(out: Path) -> None:
    """Clusters of blocks that run at a time, from the driver."""
    from vtkernels import _load

    found = _load.gpu()
    facts = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(facts | found, indent=1) + "\n")
    print(json.dumps(found))


def versions() -> dict[str, Any]:
    """What is installed."""
    found: dict[str, Any] = {"python": platform.python_version(), "cuda": torch.version.cuda, "cpus": os.cpu_count()}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found | {"commit": os.environ.get("VTKERNELS_COMMIT", "")}


def device() -> dict[str, Any]:
    """The GPU and its driver."""
    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.partition("\n")[0]
    return {
        "device": properties.name,
        "capability": list(torch.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "l2_mib": properties.L2_cache_size / 2**20,
        "driver": driver.strip(),
    }


def copy(name: str, words: int) -> float:
    """Bytes a second, read and written, of a copy that no cache holds."""
    source = torch.randn(words, device=name)
    target = torch.empty_like(source)
    return 8 * words / seconds(lambda: target.copy_(source), name)


def product(name: str, side: int) -> float:
    """Operations a second of a square float16 matrix product on random numbers (float32 on a CPU)."""
    dtype = torch.float16 if name == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=name, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, name)


def seconds(call: Callable[[], object], name: str) -> float:
    """The median of ten calls after three."""
    times = []
    for _ in range(13):
        if name == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    median: float = statistics.median(times[3:])
    return median


if __name__ == "__main__":
    main()
