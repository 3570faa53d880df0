"""Registers and stack of every CUDA kernel in the built library, and the budget they must keep.

``python tests/cuda_resources.py`` writes the budget of the library that is built: registers rounded up to eight, the step in
which the hardware gives them out. A kernel must have no stack at all, which is where spilled registers go.
"""

from __future__ import annotations

import csv
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from vtkernels import _load

BUDGET = Path(__file__).parent / "data" / "cuda_resources.csv"


def library() -> Path:
    return _load.NATIVE.with_name("libvtkernels.so")


def cuobjdump() -> str | None:
    """From the CUDA toolkit, else the copy that Triton brings: a toolkit may consist of the compiler alone."""
    places = [os.environ.get("PATH", ""), os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join(places))


def why_not() -> str:
    """What is missing to read a library, or nothing."""
    if cuobjdump() is None:
        return "cuobjdump (CUDA toolkit, or triton) is not installed"
    return "" if shutil.which("c++filt") else "c++filt (binutils) is not installed"


def measured() -> dict[tuple[str, str], tuple[int, int]]:
    """Registers and bytes of stack by architecture and kernel."""
    text = subprocess.run([cuobjdump(), "--dump-resource-usage", library()], capture_output=True, text=True, check=True)
    found, architecture = {}, ""
    names = _demangled(re.findall(r"Function (\S+):", text.stdout))
    for line in text.stdout.splitlines():
        if match := re.match(r"\s*arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            kernel = names[match[1]]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) ", line):
            found[architecture, kernel] = int(match[1]), int(match[2])
    return found


def budget() -> dict[tuple[str, str], int]:
    with BUDGET.open(newline="") as file:
        return {(row["architecture"], row["kernel"]): int(row["registers"]) for row in csv.DictReader(file)}


def _demangled(names: list[str]) -> dict[str, str]:
    """``_ZN...`` as ``Greedy<int, (GreedyPlace)0>``."""
    output = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    kernels = (re.search(r"entry<(.*?) ?>\(", line)[1].replace("vtkernels::cuda::", "") for line in output)
    return dict(zip(names, kernels, strict=True))


def write() -> None:
    rows = sorted((*key, -(-registers // 8) * 8) for key, (registers, _) in measured().items())
    with BUDGET.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("architecture", "kernel", "registers"))
        writer.writerows(rows)


if __name__ == "__main__":
    write()
