"""Other people's libraries, where they are installed: pip install "vtkernels[peers]". Never needed.

Facility location without weights is ``coverage_select(similarity, None, k)`` on a similarity without negative entries. Both
libraries take float64 NumPy arrays; the conversion, and what submodlib builds from the matrix, are not timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from .clock import Call


def facility_location(similarity: Tensor, k: int) -> dict[str, Call]:
    """Providers that choose ``k`` of N by lazy greedy: [1, N, N] -> [1, k] in the order of choice."""
    if similarity.device.type != "cpu" or len(similarity) != 1:
        return {}  # neither runs on a GPU or takes a batch
    return {name: make(similarity, k) for name, (module, make) in PEERS.items() if importlib.util.find_spec(module)}


def _apricot(similarity: Tensor, k: int) -> Callable[[], Tensor]:
    from apricot import FacilityLocationSelection

    matrix = similarity[0].double().numpy()

    def select() -> Tensor:
        chooser = FacilityLocationSelection(k, metric="precomputed", optimizer="lazy").fit(matrix)
        return torch.from_numpy(chooser.ranking)[None].long()

    return select


def _submodlib(similarity: Tensor, k: int) -> Callable[[], Tensor]:
    from submodlib import FacilityLocationFunction

    matrix = similarity[0].double().numpy()
    function = FacilityLocationFunction(n=len(matrix), mode="dense", sijs=matrix, separate_rep=False)

    def select() -> Tensor:
        chosen = function.maximize(
            budget=k, optimizer="LazyGreedy", stopIfZeroGain=False, stopIfNegativeGain=False, show_progress=False
        )
        return torch.tensor([[index for index, _ in chosen]])

    return select


PEERS = {"apricot-select": ("apricot", _apricot), "submodlib-py": ("submodlib", _submodlib)}  # by distribution
