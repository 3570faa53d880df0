"""The results as text: a line per provider for the terminal, a Markdown table for the README."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import SHAPE, by_case

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"


def plain(groups: Iterable[tuple[tuple[str, ...], dict[str, dict[str, Any]]]]) -> Iterator[str]:
    """One line per provider: median, spread and how many times slower than vtkernels it is."""
    for _, providers in groups:
        ours = float(providers["vtkernels"]["p50_ms"])
        for name, row in providers.items():
            p20, p50, p80 = (float(row[f"p{q}_ms"]) for q in (20, 50, 80))
            yield f"  {name:<20} {p50:9.3f} ms  ({p20:.3f} .. {p80:.3f})  {p50 / ours:7.2f}x"


def markdown(rows: list[dict[str, Any]]) -> str:
    """A row per op and shape: our median with its spread, and every other provider as a multiple of it."""
    lines = ["| op | shape | vtkernels, ms (p20 to p80) | others, in multiples of it |", "| --- | --- | --- | --- |"]
    for key, providers in by_case(rows):
        shape = ", ".join(f"{name} {value}" for name, value in zip(SHAPE, key[1:], strict=False) if value)
        ours = providers.pop("vtkernels")
        p50 = float(ours["p50_ms"])
        others = ", ".join(f"{name} {float(row['p50_ms']) / p50:.2f}x" for name, row in providers.items())
        lines.append(f"| `{key[0]}` | {shape} | {p50:.3f} ({float(ours['p20_ms']):.3f} to {float(ours['p80_ms']):.3f}) | {others} |")
    row = rows[0]
    lines += ["", f"float32, {row['threads']} threads, {row['device']}, torch {row['torch']}, commit {row['commit']}, {row['time'][:10]}."]
    return "\n".join(lines)


def update_readme(rows: list[dict[str, Any]]) -> None:
    """Put the table between its two marks."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{markdown(rows)}\n{END}{after}")
