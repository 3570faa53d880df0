"""Cosine with a prompt of 40 vectors, against normalising, one product and a maximum, or a mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

import torch

import vtkernels as vt

from . import floors, inputs
from .clock import Call
from .harness import Case, Results, Work
from .registry import Shape

WORDS = 40


def cases(shapes: Iterable[Shape]) -> Iterator[Case]:
    for reduce in ("max", "mean"):
        name = "prompt_relevance" if reduce == "max" else "prompt_relevance(mean)"
        for s in shapes:
            sizes = {"B": s.rows, "N": s.tokens, "D": s.language}
            yield Case(name, sizes, partial(work, s.rows, s.tokens, s.language, reduce), s.name)


def work(b: int, n: int, d: int, reduce: str = "max") -> Work:
    x, text = inputs.features(b, n, d), inputs.features(b, WORDS, d, seed=3)
    floor = floors.product(x, text.transpose(1, 2)) if reduce == "max" else floors.copy(x.nbytes + text.nbytes + 4 * b * n)
    providers: dict[str, Call] = {
        "vtkernels": partial(vt.prompt_relevance, x, text, reduce=reduce),
        "torch operators": partial(_operators, x, text, reduce),
        "reference": partial(vt.reference.prompt_relevance, x, text, reduce=reduce),
        **floor,
    }
    return Work(providers, _agree)


def _operators(x: torch.Tensor, text: torch.Tensor, reduce: str) -> torch.Tensor:
    x, text = torch.nn.functional.normalize(x, dim=-1), torch.nn.functional.normalize(text, dim=-1)
    if reduce == "max":
        return (x @ text.transpose(1, 2)).amax(2)
    return (x @ torch.nn.functional.normalize(text.mean(1), dim=-1).unsqueeze(2)).squeeze(2)


def _agree(got: Results, ours: Results) -> None:
    torch.testing.assert_close(got, ours, atol=1e-5, rtol=1e-5)
