"""What a run of ``benchmarks/gpu.sh`` wrote beside its CSVs, read as far as it goes: a step may have been cut off anywhere."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path
from typing import Any

from vtkernels._schemas import SCHEMAS

# of a metric of Nsight Compute with this unit, the column of the table; throughputs are shares of what the GPU can do
_METRICS = {
    ("Compute (SM) Throughput", "%"): "sm",
    ("Memory Throughput", "%"): "memory",
    ("Registers Per Thread", "register/thread"): "registers",
}
_MICROSECONDS = {"ns": 1e-3, "nsecond": 1e-3, "us": 1.0, "usecond": 1.0, "ms": 1e3, "msecond": 1e3, "s": 1e6, "second": 1e6}
_STEP = re.compile(
    r"(?P<step>\S+)\s+(?P<end>passed|FAILED(?: \(\d+\))?|CUT OFF|no time left)\s+(?P<seconds>\d+) s\s*(?P<last>.*)"
)
_TOOLS = ("memcheck", "synccheck", "racecheck", "initcheck")
_SUMMARY = re.compile(r"=+ (?:RACECHECK|ERROR) SUMMARY: (?P<text>.+)")


def machine(folder: Path) -> dict[str, Any]:
    """``machine.json``; empty where it is missing or was cut off."""
    try:
        found: dict[str, Any] = json.loads(_text(folder / "machine.json"))
    except ValueError:
        return {}
    return found


def steps(folder: Path) -> list[dict[str, str]]:
    """The lines of ``summary.txt`` that tell how a step ended; of a step that ran again the last."""
    found = (_STEP.fullmatch(line.strip()) for line in _text(folder / "summary.txt").splitlines())
    return list({match["step"]: match.groupdict() for match in found if match}.values())


def tests(folder: Path) -> dict[str, Counter[str]]:
    """Test function -> how many of its cases passed, failed, were skipped, from the JUnit file."""
    found: dict[str, Counter[str]] = {}
    try:
        root = xml.fromstring(_text(folder / "cuda.xml"))
    except xml.ParseError:
        return {}
    for case in root.iter("testcase"):
        ends = {child.tag for child in case}
        end = "failed" if ends & {"failure", "error"} else "skipped" if "skipped" in ends else "passed"
        found.setdefault(case.get("name", "").partition("[")[0], Counter())[end] += 1
    return found


def triton(folder: Path) -> list[str]:
    """The lines of the Triton kernels' tests, one an op: ``triton.log``, or the marked lines of ``log.txt``."""
    lines = _text(folder / "triton.log").splitlines()
    if not lines:
        marked = "[triton] "
        lines = [line.removeprefix(marked) for line in _text(folder / "log.txt").splitlines() if line.startswith(marked)]
    return [line.strip() for line in lines if line.strip().partition(":")[0] in SCHEMAS]


def sanitizers(folder: Path) -> dict[str, list[str]]:
    """compute-sanitizer's tool -> what its summaries say: ``sanitize.log``, or ``log.txt``."""
    found: dict[str, list[str]] = {}
    tool = ""
    for line in (_text(folder / "sanitize.log") or _text(folder / "log.txt")).splitlines():
        if "SUMMARY" not in line:
            tool = next((name for name in _TOOLS if re.search(rf"\b{name}\b", line)), tool)
        elif match := _SUMMARY.search(line):
            found.setdefault("racecheck" if "RACECHECK" in line else tool or "compute-sanitizer", []).append(
                match["text"].strip()
            )
    return found


def profile(folder: Path) -> list[dict[str, str]]:
    """A row per profiled launch: kernel, grid, block, microseconds, shares of the peak, registers."""
    lines = [line for line in _text(folder / "ncu.csv").splitlines() if line.startswith('"')]
    found: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(lines):
        if not row.get("ID") or row.get("Metric Value") is None:
            continue  # cut off
        launch = found.setdefault(
            row["ID"],
            {"kernel": kernel(row["Kernel Name"]), "grid": row.get("Grid Size", ""), "block": row.get("Block Size", "")},
        )
        name, unit, value = row["Metric Name"], row["Metric Unit"], row["Metric Value"].replace(",", "")
        if name == "Duration" and unit in _MICROSECONDS:
            launch["us"] = f"{float(value) * _MICROSECONDS[unit]:.1f}"
        elif (name, unit) in _METRICS:
            launch[_METRICS[name, unit]] = value
    return [launch for launch in found.values() if len(launch) > 3]


def kernel(name: str) -> str:
    """``void vtkernels::cuda::entry<vtkernels::cuda::Greedy<int, 0>>(...)`` without what all have: ``Greedy<int, 0>``."""
    inner = re.search(r"entry<(.*)>\(", name)
    short = inner[1] if inner else re.split(r"[<(]", name.removeprefix("void "))[0]
    return re.sub(r"\((\w+::)*\w+\)|(\w+::)+", "", short).strip().replace("> >", ">>")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""
