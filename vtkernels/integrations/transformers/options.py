"""The options of ``prune``: what the caller said, and the method's published choice where nothing was said."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from vtkernels.methods import Method, Policy

_CHOICES = {
    "budget": ("per_crop", "per_branch", "joint"),
    "positions": ("contiguous", "original"),
    "newlines": ("keep", "drop"),
    "padding": ("include", "exclude"),
}


@dataclass(frozen=True)
class Options:
    """One value for each; see :func:`vtkernels.prune`. ``given`` names those that the caller chose."""

    budget: str
    positions: str
    newlines: str
    padding: str
    given: frozenset[str]

    def with_budget(self, budget: str) -> Options:
        """The same with another budget."""
        return replace(self, budget=budget)


def resolve(method: Method, **wanted: str | None) -> Options:
    """The options of a pruning with ``method``; None is the method's own choice.

    Raises:
        ValueError: a value is unknown, or the method has no meaning for it.
    """
    name, policy = type(method).__name__, getattr(method, "policy", Policy())
    own = {"budget": policy.budgets[0], **{f.name: getattr(policy, f.name) for f in fields(policy) if f.name != "budgets"}}
    for option, value in wanted.items():
        choices = policy.budgets if option == "budget" else _CHOICES[option]
        if value is not None and value not in choices:
            listed = " or ".join(repr(choice) for choice in choices)
            other = " with " + name if option == "budget" and value in _CHOICES[option] else ""
            raise ValueError(f"{option} must be {listed}{other}, got {value!r}")
    given = {option: value for option, value in wanted.items() if value is not None}
    return Options(**(own | given), given=frozenset(given))
