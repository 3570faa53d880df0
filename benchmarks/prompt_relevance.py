"""Cosine with a prompt of 40 vectors, against normalising, one product and a maximum."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import vtkernels as vt

from . import inputs
from .harness import Case

WORDS = 40
SHAPES = ((1, 576, 4096), (1, 576, 1024), (1, 2880, 4096))


def cases() -> Iterator[Case]:
    for b, n, d in SHAPES:
        x, text = inputs.features(b, n, d), inputs.features(b, WORDS, d, seed=3)
        providers = {
            "vtkernels": partial(vt.prompt_relevance, x, text),
            "vtkernels mean": partial(vt.prompt_relevance, x, text, reduce="mean"),
            "torch operators": partial(_operators, x, text, "max"),
            "torch operators, mean": partial(_operators, x, text, "mean"),
            "reference": partial(vt.reference.prompt_relevance, x, text),
        }
        yield Case("prompt_relevance", {"B": b, "N": n, "D": d}, providers, partial(_gate, x, text), seconds=4)


def _operators(x: torch.Tensor, text: torch.Tensor, reduce: str) -> torch.Tensor:
    x, text = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(text, dim=-1)
    if reduce == "max":
        return (x @ text.transpose(1, 2)).amax(2)
    return (x @ torch.nn.functional.normalize(text.mean(1), dim=-1).unsqueeze(2)).squeeze(2)


def _gate(x: torch.Tensor, text: torch.Tensor) -> None:
    for reduce in ("max", "mean"):
        got = vt.prompt_relevance(x, text, reduce=reduce)
        torch.testing.assert_close(got, _operators(x, text, reduce), atol=1e-5, rtol=1e-5)
