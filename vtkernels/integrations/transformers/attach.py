"""Attaching to one model instance, and undoing it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# What a wrapper looks like: all but the annotations, which cannot always be pickled and are found through __wrapped__.
_NAMES = ("__module__", "__name__", "__qualname__", "__doc__")


class _Absent:
    """Stands for an attribute that the instance did not have. A class, because deepcopy keeps classes as they are."""


def named_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The call's arguments by name, as ``function`` would bind them."""
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    return dict(zip(names, args, strict=False)) | kwargs


def uncompiled(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a function; see :func:`_hide`."""
    return function(*args, **kwargs)


def _hide() -> None:
    """Have torch.compile run :func:`uncompiled`, and all that it calls, as it is.

    Not before something is attached, because this imports the compiler; and in place, so that a pickled model finds it.
    """
    global uncompiled
    if not hasattr(uncompiled, "__wrapped__"):
        uncompiled = torch.compiler.disable(uncompiled)


class Attachments:
    """Hooks and wrapped attributes of one model, undone in reverse order.

    Everything held here is a bound method, a ``functools.partial`` or a hook handle, so ``copy.deepcopy`` of a pruned model
    gives a pruned model of its own.
    """

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._wrapped: list[tuple[Any, str, Any, Any]] = []
        self._met: list[nn.Module] = []

    def first(self, module: nn.Module) -> bool:
        """Whether a module has not been met yet. Asked before every call: an adapter may have put another in its place."""
        if any(module is other for other in self._met):
            return False
        self._met.append(module)
        return True

    def hook(self, register: Callable[..., Any], function: Callable[..., Any], **options: Any) -> None:
        """``register`` is a module's ``register_forward_hook`` or ``register_forward_pre_hook``."""
        self._handles.append(register(function, **options))

    def wrap(self, owner: nn.Module, name: str, replacement: Callable[..., Any], *, compiled: bool = True) -> None:
        """Make ``owner.name(...)`` call ``replacement(original, ...)`` on this instance only.

        Args:
            compiled: whether torch.compile may look inside.
        """
        original = getattr(owner, name)
        if compiled:
            call = functools.partial(replacement, original)
        else:
            _hide()
            call = functools.partial(uncompiled, replacement, original)
        wrapper = functools.update_wrapper(call, original, _NAMES)
        self._wrapped.append((owner, name, vars(owner).get(name, _Absent), wrapper))
        vars(owner)[name] = wrapper

    def undo(self) -> None:
        """Remove the hooks and give back the attributes. Twice is harmless."""
        self._met.clear()
        while self._handles:
            self._handles.pop().remove()
        while self._wrapped:
            owner, name, before, wrapper = self._wrapped.pop()
            if vars(owner).get(name) is not wrapper:  # wrapped again by someone else, whose wrapper still calls ours
                continue
            if before is _Absent:
                del vars(owner)[name]
            else:
                vars(owner)[name] = before
