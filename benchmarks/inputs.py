"""Inputs like those the ops meet: clustered features, a softmax for saliency, keys laid out as a CLIP layer has them."""

from __future__ import annotations

import torch
from torch import Tensor


def features(b: int, n: int, d: int, seed: int = 0) -> Tensor:
    """float32 [b, n, d]: 20 clusters around a common direction."""
    random = torch.Generator().manual_seed(seed)
    centre = torch.randn(b, 20, d, generator=random) + 0.8 * torch.randn(b, 1, d, generator=random)
    label = torch.randint(0, 20, (b, n), generator=random)
    noise = torch.randn(b, n, d, generator=random)
    return centre.gather(1, label.unsqueeze(-1).expand(b, n, d)) + 0.5 * noise


def saliency(b: int, n: int, seed: int = 1) -> Tensor:
    """float32 [b, n]: attention mass of 16 heads."""
    random = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(b, 16, n, generator=random)).softmax(-1).sum(1)


def query_key(b: int, h: int, t: int, d: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """[b, h, t, d] each, as views of [b, t, h * d]: the strides of a CLIP attention layer."""
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(b, t, h * d, generator=random).view(b, t, h, d).transpose(1, 2) for _ in range(2))
    return q, k
