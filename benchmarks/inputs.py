"""Inputs like those the ops meet: clustered features, a softmax for saliency, keys laid out as a CLIP layer has them.

Drawn on the CPU, so that they have the same values everywhere, and moved to ``device``. Not to a default device of torch's:
while one is set, torch passes every call through Python, and small calls would be charged for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

dtype = torch.float32  # of features, queries and keys; `--dtype` sets it
device = torch.device("cpu")  # of everything; `--device` sets it


def features(b: int, n: int, d: int, seed: int = 0) -> Tensor:
    """[b, n, d] of ``dtype``: 20 clusters around a common direction."""
    random = torch.Generator().manual_seed(seed)
    centre = _normal(random, b, 20, d) + 0.8 * _normal(random, b, 1, d)
    label = torch.randint(0, 20, (b, n), generator=random)
    noise = _normal(random, b, n, d)
    return _here(centre.gather(1, label.unsqueeze(-1).expand(b, n, d)) + 0.5 * noise).to(dtype)


def saliency(b: int, n: int, seed: int = 1) -> Tensor:
    """float32 [b, n]: attention mass of 16 heads."""
    random = torch.Generator().manual_seed(seed)
    return _here((2 * _normal(random, b, 16, n)).softmax(-1).sum(1))


def query_key(b: int, h: int, t: int, d: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """[b, h, t, d] each, of ``dtype``, as views of [b, t, h * d]: the strides of a CLIP attention layer."""
    random = torch.Generator().manual_seed(seed)
    q, k = (_here(_normal(random, b, t, h * d)).to(dtype).view(b, t, h, d).transpose(1, 2) for _ in range(2))
    return q, k


def _normal(random: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=random)


def _here(x: Tensor) -> Tensor:
    return x.to(device)
