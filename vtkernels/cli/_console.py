"""Tables on standard output and progress on standard error: rich on a terminal, plain text elsewhere or without rich."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", left: int = 1, tight: bool = False
) -> None:
    """Print a table; the first ``left`` columns are aligned left, the rest right. Headers may span lines.

    ``tight`` leaves as little as possible between columns on a terminal.
    """
    if not _rich(sys.stdout):
        print(f"{title}\n{_plain(headers, rows, left)}" if title else _plain(headers, rows, left))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    drawn = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_justify="left",
        title_style="bold",
        show_header=any(headers),
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if tight else 1),
        collapse_padding=True,
    )
    for place, header in enumerate(headers):
        drawn.add_column(header, justify="left" if place < left else "right", no_wrap=place == 0 or place >= left)
    for row in rows:
        drawn.add_row(*row)
    Console().print(drawn)


def width() -> int:
    """Columns of the terminal; wide where there is none."""
    return shutil.get_terminal_size((120, 24)).columns


def wrap(text: str) -> str:
    """Lines no longer than the terminal, and never too long to read."""
    return textwrap.fill(text, min(110, max(60, width())), break_on_hyphens=False, break_long_words=False)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """A sign of life while something long of unknown length runs."""
    if not _rich(sys.stderr):
        print(f"... {what}", file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


@contextmanager
def progress(total: int) -> Iterator[Callable[..., None]]:
    """Yield ``step(what, advance=0)``: says what happens now, after ``advance`` more of ``total`` units are done.

    Nothing is drawn between steps: a thread that animates would take its share of what is being timed.
    """
    if not _rich(sys.stderr):
        last = None

        def say(what: str, advance: int = 0) -> None:
            nonlocal last
            if what != last:
                print(f"... {what}", file=sys.stderr, flush=True)
            last = what

        yield say
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("starting", total=total)

        def step(what: str, advance: int = 0) -> None:
            bar.update(task, description=what, advance=advance, refresh=True)

        yield step


def _rich(stream: object) -> bool:
    return bool(getattr(stream, "isatty", bool)()) and importlib.util.find_spec("rich") is not None


def _plain(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    heads = [header.split("\n") for header in headers]
    depth = max(len(head) for head in heads)
    top = [[([""] * (depth - len(head)) + head)[line] for head in heads] for line in range(depth)]
    widths = [max(len(line[place]) for line in [*top, *rows]) for place in range(len(headers))]

    def layout(cells: Sequence[str]) -> str:
        pairs = enumerate(zip(cells, widths, strict=True))
        return "  ".join(cell.ljust(width) if place < left else cell.rjust(width) for place, (cell, width) in pairs).rstrip()

    head = [*map(layout, top), "  ".join("-" * width for width in widths)] if any(headers) else []
    return "\n".join([*head, *map(layout, rows)])
