"""Files that a command writes: checked before any long work; complete, or as they were before."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vtkernels.cli._errors import UsageError, first_line

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


def check_out(path: str | Path, flag: str = "--out", *, suffixes: Sequence[str] = ()) -> Path:
    """The output path, if a file can be written there; ``suffixes`` are those it may end in."""
    out = Path(path)
    given = f"argument {flag}: {str(path)!r}"
    if suffixes and out.suffix.lower() not in suffixes:
        raise UsageError(f"{given} has no suffix of a picture; end it in one of {', '.join(suffixes)}")
    try:
        if out.is_dir():
            raise UsageError(f"{given} is a folder; give the name of a file in it")
        if not out.parent.is_dir():
            raise UsageError(f"{given} is in a folder {str(out.parent)!r} that does not exist; create it first")
        if out.exists():
            with open(out, "ab"):
                pass
        with replacing(out, rehearse=True) as part:
            part.touch()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UsageError(f"{given} cannot be written ({reason}); choose another place") from None
    return out


@contextmanager
def replacing(out: Path, *, rehearse: bool = False) -> Iterator[Path]:
    """A file beside ``out`` to write to, which takes its place once the block ends without an error.

    So a full disk or an interrupt cannot cost the file that was there. ``rehearse`` throws the new file away instead.
    A link stays a link; what is no regular file, such as ``/dev/stdout``, is written as it is.
    """
    out = out.resolve()
    if out.exists() and not out.is_file():
        yield out
        return
    part = out.with_name(f".{os.getpid()}-{out.name}")  # a picture's format is in its suffix
    try:
        yield part
        if not rehearse:
            if out.exists():
                shutil.copymode(out, part)
            part.replace(out)
    finally:
        part.unlink(missing_ok=True)
