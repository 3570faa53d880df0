from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import valid_mask, working


def cls_attention(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    reduce: str = "mean",
    lengths: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * q . k_t)`` over all T tokens, mean or sum over heads, the first ``prefix`` columns dropped."""
    b, _, t, d = key.shape
    scale = d**-0.5 if scale is None else scale
    logits = (working(key) @ working(query).unsqueeze(-1)).squeeze(-1) * scale
    no_mass = ~logits.isfinite() | ~valid_mask(lengths, b, t, key.device).unsqueeze(1)
    logits = logits.masked_fill(no_mass, -torch.inf)
    attention = logits.softmax(-1).masked_fill(no_mass, 0)  # a row without any mass would be NaN
    attention = attention.mean(1) if reduce == "mean" else attention.sum(1)
    return attention[:, prefix:].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
