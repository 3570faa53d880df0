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


def usable(features: Tensor) -> Tensor:
    """Bool without the last dimension: rows that have a direction, as their squared float32 norm is finite and not 0."""
    square = features.float().square().sum(-1)
    return square.isfinite() & (square > 0)


def directions(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of unit norm, and the norms. Both are 0 where a row is zero or not finite, judged by its squared float32 norm."""
    good = usable(features).unsqueeze(-1)
    x = working(features).masked_fill(~good, 0)
    norm = x.norm(dim=-1, keepdim=True)
    return x / norm.masked_fill(~good, 1), norm.squeeze(-1)


def normalise(features: Tensor) -> Tensor:
    """Rows of unit norm; a row that is zero or not finite becomes zero."""
    return directions(features)[0]


def ascending(indices: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Indices in token order, -1 at the end; the other tensors follow their index."""
    last = torch.iinfo(indices.dtype).max
    key, order = indices.masked_fill(indices < 0, last).sort(dim=1, stable=True)
    return key.masked_fill(key == last, -1), *(x.gather(1, order) for x in others)
