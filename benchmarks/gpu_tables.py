"""The tables of a run on a GPU; empty where there is nothing to show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from . import headline, model_table, scaling
from .harness import FLOOR, OURS, SIZES, by_case
from .ops import in_words
from .pages import table

Row = Mapping[str, str]
Rows = Sequence[Row]
_Case = tuple[dict[str, str], dict[str, Row], dict[tuple[str, str], Row]]
_OWN = (OURS, "triton", "reference")
_DEVICE = (("warm", "graph"), ("warm", "eager"))  # where device time is taken from, in this order


def machine(facts: Mapping[str, Any]) -> str:
    """What ran, and what it reaches."""
    names = {
        "device": "GPU", "driver": "driver", "cuda": "CUDA", "torch": "torch", "triton": "Triton", "python": "Python",
        "commit": "commit", "copy_gb_s": "copy, GB/s", "matmul_tflop_s": "float16 product, TFLOP/s",
    }  # fmt: skip
    lines = [[label, str(facts[name])] for name, label in names.items() if facts.get(name) not in (None, "")]
    if facts.get("clusters"):
        fits = ", ".join(f"{count} of {size}" for size, count in facts["clusters"].items())
        lines.append(["clusters of blocks at a time", fits])
    return table(["", ""], lines) if lines else ""


def steps(found: Sequence[Mapping[str, str]]) -> str:
    """How every step of the script ended."""
    lines = [[f"`{step['step']}`", step["end"], step["seconds"], step["last"].replace("|", "\\|")] for step in found]
    return table(["step", "end", "s", "last line"], lines) if lines else ""


def tests(found: Mapping[str, Counter[str]]) -> str:
    """Counts, and the test functions that failed."""
    total = sum(found.values(), Counter())
    if not total:
        return ""
    text = ", ".join(f"{total[end]} {end}" for end in ("passed", "failed", "skipped") if total[end])
    failed = [f"`{name}` ({ends['failed']} of {ends.total()})" for name, ends in found.items() if ends["failed"]]
    return f"{text} of {total.total()} tests.{' Failed: ' + ', '.join(failed) + '.' if failed else ''}"


def triton(lines: Sequence[str]) -> str:
    """What the tests of the compiled Triton kernels say of each op."""
    return (
        table(["op", "Triton"], [[f"`{op}`", text.strip()] for op, _, text in (x.partition(":") for x in lines)])
        if lines
        else ""
    )


def sanitizers(found: Mapping[str, Sequence[str]]) -> str:
    """What each tool of compute-sanitizer counted."""
    return table(["tool", "result"], [[f"`{tool}`", "; ".join(texts)] for tool, texts in found.items()]) if found else ""


def targets(rows: Rows) -> str:
    """Every target, measured or not."""
    if not rows:
        return ""
    measured = {(row["op"], in_words(row)): (us, row["backend"], row["gate"]) for row, us, _, _ in headline.verdicts(rows)}
    lines = []
    for op, sizes, limit in headline.TARGETS:
        us, *said = measured.get((op, in_words(sizes)), (None, "", ""))
        verdict = "not measured" if us is None else "met" if us <= limit else f"missed by {us / limit:.2f}x"
        lines.append([f"`{op}`", in_words(sizes), f"{limit:g}", "" if us is None else f"{us:.1f}", verdict, *said])
    return table(["op", "shape", "target, us", "measured, us", "", "backend", "gate"], lines)


def cases(rows: Rows) -> list[_Case]:
    """What names each case; provider -> its row of device time, of a graph if there is one; (provider, timing) -> row."""
    found: dict[tuple[str, ...], _Case] = {}
    for shared, providers in by_case(rows):
        key = tuple(shared[name] for name in ("op", "shape", *SIZES, "dtype"))
        _, device, call = found.setdefault(key, (shared, {}, {}))
        for name, row in providers.items():
            if shared["timing"] == "device" and (shared["cache"], shared["launch"]) in _DEVICE:
                if name not in device or shared["launch"] == "graph":
                    device[name] = row
            elif shared["timing"] != "device":
                call[name, shared["timing"]] = row
    return [entry for entry in found.values() if entry[1]]


def kind(provider: str) -> str:
    """What a provider is in a table or plot: vtkernels, triton, floor or today."""
    return "floor" if provider.endswith(FLOOR) else provider if provider in _OWN else "today"


def microseconds(row: Mapping[str, str], quantile: int = 50) -> float:
    return 1e3 * float(row[f"p{quantile}_ms"])


def ops(rows: Rows) -> str:
    """A row per case: device time of ours with its spread, of the others, and the host's time of our call."""
    heads = [
        "op",
        "shape",
        "backend",
        "vtkernels, us (p20 to p80)",
        "Triton, us",
        "today, us",
        "floor, us",
        "call, finished, us",
        "gate",
    ]
    lines = []
    for shared, device, call in cases(rows):
        cells: dict[str, list[str]] = {name: [] for name in ("triton", "today", "floor")}
        for name, row in device.items():
            if kind(name) in cells:
                label = name.removesuffix(FLOOR)
                cells[kind(name)].append(_us(row) if name == "triton" else f"{label} {_us(row)}")
        host = [_us(call[OURS, timing]) if (OURS, timing) in call else "-" for timing in ("call", "finished")]
        ours = device.get(OURS)
        own = "" if ours is None else f"{_us(ours)} ({_us(ours, 20)} to {_us(ours, 80)})"
        gate, backend = ("no figure", "") if ours is None else (ours["gate"], ours["backend"])
        shape = f"{shared['shape']}: {in_words(shared)}"
        lines.append(
            [f"`{shared['op']}`", shape, backend, own, *(", ".join(cell) for cell in cells.values()), ", ".join(host), gate]
        )
    lost = [[f"`{row['op']}`", f"{row['shape']}: {in_words(row)}", "", "", "", "", "", "", f"{row['provider']} {row['gate']}"]
            for row in rows if row["gate"].startswith("failed")]  # fmt: skip
    return f"{table(heads, lines + lost)}\n\n{taken(rows)}" if lines or lost else ""


def _us(row: Mapping[str, str], quantile: int = 50) -> str:
    value = microseconds(row, quantile)
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def scaled(rows: Rows) -> str:
    """The exponents, as on a CPU."""
    return f"{scaling.markdown(rows)}\n\n{taken(rows)}" if scaling.fitted(rows) else ""


def models(rows: Rows) -> str:
    """The stages, as on a CPU."""
    return model_table.markdown(rows) if model_table.groups(rows) else ""


def profile(launches: Sequence[Mapping[str, str]]) -> str:
    """Nsight Compute's figures of single launches."""
    heads = ["kernel", "grid", "block", "duration, us", "SM, %", "memory, %", "registers"]
    names = ("grid", "block", "us", "sm", "memory", "registers")
    lines = [[f"`{launch['kernel']}`", *(launch.get(name, "") for name in names)] for launch in launches]
    return table(heads, lines) if lines else ""


def taken(rows: Rows) -> str:
    """Where, with what and when."""
    row = rows[0]
    names = {"driver": "driver", "cuda": "CUDA", "torch": "torch", "triton": "Triton"}
    versions = ", ".join(f"{label} {row[name]}" for name, label in names.items() if row[name])
    return f"{row['dtype']}, {row['device']}, {versions}, commit {row['commit']}, {row['time'][:10]}."
