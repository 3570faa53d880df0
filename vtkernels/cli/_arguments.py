"""Arguments of the subcommands, from what was typed to what is meant."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, NoReturn

from vtkernels.cli._errors import UsageError

if TYPE_CHECKING:
    import torch

# Class name of each method, and the ops that its choice is made of.
METHODS = {
    "Scope": ("cls_attention", "scope_select"),
    "FoPru": ("attention_profile", "topk_select"),
    "GPrune": ("graph_propagate", "topk_select"),
    "HoloV": ("cls_attention", "crop_topk"),
    "PAR": ("prompt_relevance", "token_clusters", "cluster_topk", "route_tokens", "merge_tokens"),
    "TopAttention": ("attention_topk",),
    "Random": ("topk_select",),
    "Uniform": (),
}


class Parser(argparse.ArgumentParser):
    """Errors in one line; argparse would print the whole usage first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def check_counts(options: argparse.Namespace, *flags: str) -> None:
    """Counts are at least 1 where they are given."""
    for flag in flags:
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise UsageError(f"argument --{flag.replace('_', '-')}: {value} is too small; give a number >= 1")


def check_seed(seed: int) -> None:
    """A seed that torch takes."""
    if not 0 <= seed < 2**63:
        raise UsageError(f"argument --seed: {seed} is out of range; give a number from 0 to 2**63 - 1")


def method_names(given: list[str] | None) -> list[str]:
    """Class names of the methods asked for, in order and once each; all of them by default."""
    known = {name.lower(): name for name in METHODS}
    asked = [part.strip() for entry in given or [",".join(known)] for part in entry.split(",")]
    names = []
    for part in asked:
        name = known.get(part.lower().replace("-", "").replace("_", ""))
        if name is None:
            raise UsageError(f"argument --method: {part!r} is no method; choose from {', '.join(known)}")
        names.append(name)
    return list(dict.fromkeys(names))


def budget(given: str) -> int | float:
    """A number of tokens or a fraction."""
    for kind in (int, float):
        try:
            value = kind(given)
        except ValueError:
            continue
        if (kind is int and value >= 1) or (kind is float and 0 < value <= 1):
            return value
        break
    raise UsageError(f"argument --keep: {given!r} is out of range; give a number of tokens >= 1 or a fraction in (0, 1]")


def check_budget(keep: int | float, tokens: int) -> None:
    """Whether a picture of ``tokens`` tokens has that many to keep."""
    if keep > tokens:
        raise UsageError(f"argument --keep: {keep} is more than the {tokens} visual tokens of a picture; give 1 to {tokens}")


def torch_device(given: str) -> torch.device:
    """A device that is there."""
    import torch

    try:
        device = torch.device(given)
    except RuntimeError:
        raise UsageError(f"argument --device: {given!r} is no device; give cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"argument --device: {given!r} is not supported; give cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"argument --device: {given!r} is not there, torch sees {count} GPUs; give --device cpu")
    return device
