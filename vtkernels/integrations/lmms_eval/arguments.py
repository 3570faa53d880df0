"""``--model_args`` to methods: names and options as they are typed, errors in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from vtkernels import methods
from vtkernels.methods import Method

_TYPED = {"int", "float", "str", "None"}  # what can be typed; text encoders and lists of ids cannot


def known() -> dict[str, type]:
    """The methods of this package by their names in lower case."""
    classes = (getattr(methods, name) for name in methods.__all__)
    return {
        kind.__name__.lower(): kind
        for kind in classes
        if isinstance(kind, type) and is_dataclass(kind) and hasattr(kind, "select")
    }


def options_of(kind: type) -> tuple[str, ...]:
    """The options of a method that can be typed."""
    return tuple(field.name for field in fields(kind) if set(str(field.type).split(" | ")) <= _TYPED)


def method_of(name: str | None, given: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method of this name, made with its options among ``given``, and what is left of these.

    Raises:
        ValueError: there is no such method, or an option has a value that the method refuses.
    """
    names = ", ".join(known())
    if name is None:
        raise ValueError(f"--model_args: method is missing; add method=NAME, one of {names}")
    kind = known().get(str(name).lower().replace("-", "").replace("_", ""))
    if kind is None:
        raise ValueError(f"--model_args: method={name} is no method; choose from {names}")
    own = options_of(kind)
    try:
        method = kind(**{option: value for option, value in given.items() if option in own})
    except (TypeError, ValueError) as error:
        raise ValueError(f"--model_args: {error}") from None
    return method, {option: value for option, value in given.items() if option not in own}


def check_keep(keep: Any) -> int | float:
    """Tokens to keep, if that is a number; its range is for ``vt.prune`` to judge."""
    if keep is None:
        raise ValueError("--model_args: keep is missing; add keep=64 (patch tokens per image) or keep=0.25 (a share of them)")
    if isinstance(keep, bool) or not isinstance(keep, int | float):
        raise ValueError(f"--model_args: keep={keep} is no number; give patch tokens per image or a share in (0, 1]")
    return keep


def check_rest(rest: Mapping[str, Any], taken: set[str], method: Method) -> None:
    """Whatever is neither an option of the method nor an argument of the model is a mistake."""
    for option in rest:
        if option not in taken:
            name = type(method).__name__
            own = ", ".join(options_of(type(method))) or "none"
            raise ValueError(
                f"--model_args: {option} is no option of {name} (which has: {own}) nor of the model (which has: method, keep, "
                f"budget, positions, newlines, padding, {', '.join(sorted(taken))})"
            )
