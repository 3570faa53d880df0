"""The baselines that every method is compared with."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vtkernels import ops
from vtkernels.methods._base import Context, Selection

_WORD = 0xFFFFFFFF
_Words = TypeVar("_Words", int, Tensor)


@dataclass(frozen=True)
class TopAttention:
    """The tokens that the class token attends to most, mean over heads, in the layer whose output is the feature layer.

    Without a class token: those that receive most attention.

    Source: class-token ranking as in FasterVLM, arXiv 2412.01818.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"saliency"})

    def select(self, context: Context, k: int) -> Selection:
        """Scores are the attention."""
        if context.query is not None and context.key is not None and context.arrange is None:
            return Selection(*ops.attention_topk(context.query, context.key, k, prefix=context.prefix))
        saliency = context.saliency()
        return Selection(ops.topk_select(saliency, k), saliency)


@dataclass(frozen=True)
class Random:
    """A random set of token positions.

    The set is a function of ``seed``, N and k alone: every image, in every batch, run and process and on every device, keeps
    the same positions. For an average over draws, run with several seeds. With one seed, a smaller k keeps a subset of what a
    larger k keeps.

    Args:
        seed: which set, any integer (taken modulo 2**32).

    Raises:
        TypeError: ``seed`` is not an integer.
    """

    seed: int = 0

    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        try:
            operator.index(self.seed)
        except TypeError:
            raise TypeError(f"Random: seed must be an integer, got {self.seed!r}") from None

    def select(self, context: Context, k: int) -> Selection:
        """Has no scores."""
        # A counter-based generator: no state, no host-to-device copy, the same bits on every device.
        position = torch.arange(context.tokens, device=context.device)
        draw = _mix(_mix(position + 1) ^ _mix(self.seed & _WORD))
        draw = (draw >> 8).float()  # 24 bits are exact in float32; a tie goes to the lower position
        return Selection(ops.topk_select(draw.expand(context.batch, -1), k))


@dataclass(frozen=True)
class Uniform:
    """Tokens evenly spaced in token order (row by row over the grid): the middle one of each of k equal stretches."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def select(self, context: Context, k: int) -> Selection:
        """Has no scores."""
        stretch = torch.arange(k, device=context.device)
        middle = (2 * stretch + 1) * context.tokens // (2 * k)
        return Selection(middle.expand(context.batch, -1).contiguous())


def _mix(x: _Words) -> _Words:
    """The 32-bit finaliser of MurmurHash3 (public domain): a bijection in which every input bit moves every output bit."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B & _WORD
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35 & _WORD
    return x ^ (x >> 16)
