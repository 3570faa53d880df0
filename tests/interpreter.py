"""Triton's interpreter in half the time.

It replaces the functions of ``triton.language`` by its own when a kernel starts, and searches for them again at every call of a
jitted function inside the kernel. Here a call that finds nothing left to replace is spared the search.
"""

from __future__ import annotations

import functools
import inspect
from types import ModuleType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter

_replace = interpreter._patch_lang


@functools.cache
def _a_builtin(language: ModuleType) -> str:
    """One of the functions that are replaced."""
    return next(name for name, member in inspect.getmembers(language) if tl.core.is_builtin(member))


def _replace_once(function: Any) -> Any:
    languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
    if any(tl.core.is_builtin(getattr(language, _a_builtin(language))) for language in languages):
        return _replace(function)
    return interpreter._LangPatchScope()


def speed_up() -> None:
    for language in (tl, tl.core):  # before the first is replaced
        _a_builtin(language)
    interpreter._patch_lang = _replace_once
