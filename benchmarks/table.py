"""The results as text: a line per provider for the terminal, Markdown tables for the two READMEs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .harness import SHAPE, by_case

HERE = Path(__file__).parent
# The first page shows one shape of each op, the page beside the benchmarks all of them.
PAGES = {HERE.parent / "README.md": True, HERE / "README.md": False}
BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"


def plain(groups: Iterable[tuple[tuple[str, ...], dict[str, dict[str, Any]]]]) -> Iterator[str]:
    """One line per provider: median, spread and how many times slower than vtkernels it is."""
    for _, providers in groups:
        ours = float(providers["vtkernels"]["p50_ms"])
        for name, row in providers.items():
            p20, p50, p80 = (float(row[f"p{q}_ms"]) for q in (20, 50, 80))
            yield f"  {name:<20} {p50:9.3f} ms  ({p20:.3f} .. {p80:.3f})  {p50 / ours:7.2f}x"


def markdown(rows: list[dict[str, Any]], *, first_shapes: bool = False) -> str:
    """A row per op and shape: our median with its spread, and every other provider as a multiple of it."""
    lines = ["| op | shape | vtkernels, ms (p20 to p80) | others, in multiples of it |", "| --- | --- | --- | --- |"]
    seen: set[str] = set()
    for (op, *sizes, _), providers in by_case(rows):
        if first_shapes and op in seen:
            continue
        seen.add(op)
        shape = ", ".join(f"{name} {size}" for name, size in zip(SHAPE, sizes, strict=True) if size)
        p20, p50, p80 = (float(providers["vtkernels"][f"p{q}_ms"]) for q in (20, 50, 80))
        others = [f"{name} {float(row['p50_ms']) / p50:.3g}x" for name, row in providers.items() if name != "vtkernels"]
        lines.append(f"| `{op}` | {shape} | {p50:.3f} ({p20:.3f} to {p80:.3f}) | {', '.join(others)} |")
    row = rows[0]
    lines += ["", f"float32, {row['threads']} threads, {row['device']}, torch {row['torch']}, {row['time'][:10]}."]
    return "\n".join(lines)


def with_table(page: str, table: str) -> str:
    """The page with the table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}"


def update_pages(rows: list[dict[str, Any]]) -> None:
    for path, first_shapes in PAGES.items():
        path.write_text(with_table(path.read_text(), markdown(rows, first_shapes=first_shapes)))
