"""The CSV of a run, written as the run goes on: what was measured is there when the run ends early."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .harness import load, save


class Sheet:
    """Rows, and the file that holds them after every ``add``, whole each time.

    A file that was asked for by name is written itself. Committed results are replaced only by a whole run: until ``close`` the
    rows are in a file beside them, ``<name>.partial.csv``. ``resumed`` takes over the rows that are there from a run that
    ended early. Without a path nothing is written.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], *, committed: bool = False, resumed: bool = False):
        self._path, self._columns = path, columns
        self._file = path.with_suffix(".partial.csv") if path is not None and committed else path
        self.rows: list[Mapping[str, Any]] = []
        if resumed and self._file is not None and self._file.is_file():
            self.rows += load(self._file)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """More rows, for good."""
        self.rows += rows
        self.show()

    def show(self, more: Iterable[Mapping[str, Any]] = ()) -> None:
        """Write what there is, and ``more`` that is not final yet."""
        if self._file is not None and (self._file.is_file() or not self._file.exists()):  # /dev/stdout takes them once
            save([*self.rows, *more], self._file, self._columns)

    def close(self, *, good: bool = True) -> Path | None:
        """Where the rows are now; committed results are left as they were unless the run was ``good``."""
        if self._path is None or not self.rows:
            return None
        if self._path.exists() and not self._path.is_file():
            save(self.rows, self._path, self._columns)
        elif self._file != self._path and good:
            assert self._file is not None
            self._file.replace(self._path)
            return self._path
        return self._file
