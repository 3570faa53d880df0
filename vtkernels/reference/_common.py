"""What several references share: working precision, masks, the common order of results."""

from __future__ import annotations

import torch
from torch import Tensor


def working(x: Tensor) -> Tensor:
    """float32 or wider."""
    return x if x.dtype == torch.float64 else x.float()


def valid_mask(lengths: Tensor | None, b: int, n: int, device: torch.device) -> Tensor:
    """[B, N] bool: the first ``lengths[b]`` tokens of each row, lengths clamped to [0, N]."""
    if lengths is None:
        return torch.ones(b, n, dtype=torch.bool, device=device)
    return torch.arange(n, device=device) < lengths.clamp(0, n).unsqueeze(1)


def normalise(features: Tensor) -> Tensor:
    """Rows of unit norm; a row that is zero or not finite (judged by its squared float32 norm) becomes zero."""
    square = features.float().square().sum(-1, keepdim=True)
    usable = square.isfinite() & (square > 0)
    x = working(features).masked_fill(~usable, 0)
    return x / x.norm(dim=-1, keepdim=True).masked_fill(~usable, 1)


def ascending(indices: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Indices in token order, -1 at the end; the other tensors follow their index."""
    last = torch.iinfo(indices.dtype).max
    key, order = indices.masked_fill(indices < 0, last).sort(dim=1, stable=True)
    return key.masked_fill(key == last, -1), *(x.gather(1, order) for x in others)
