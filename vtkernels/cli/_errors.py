"""What a user can get wrong, said in one line."""

from __future__ import annotations

import importlib.util


class UsageError(Exception):
    """An argument that does not work; the message names the argument, its value and the fix."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def require(what: str, extra: str, *modules: str) -> None:
    """Check that optional packages are there before anything imports them."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join({"PIL": "pillow"}.get(name, name) for name in missing)
        raise UsageError(f'{what} needs {names}: pip install "vtkernels[{extra}]"')
