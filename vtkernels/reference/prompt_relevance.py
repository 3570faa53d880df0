from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import normalise, usable, valid_mask, working


def prompt_relevance(vision: Tensor, text: Tensor, *, text_lengths: Tensor | None = None, reduce: str = "max") -> Tensor:
    """Greatest cosine with a prompt vector, or the cosine with the mean of the normalised prompt vectors; 0 without any."""
    b, t, _ = text.shape
    x = normalise(text)
    valid = valid_mask(text_lengths, b, t, text.device)
    if reduce == "mean":
        x = normalise((x * valid.unsqueeze(2)).sum(1, keepdim=True))
        return _cosine(vision, x).squeeze(2).float()
    if t == 0:
        return vision.new_zeros(vision.shape[:2], dtype=torch.float32)
    best = _cosine(vision, x).masked_fill(~valid.unsqueeze(1), -torch.inf).amax(2)
    return best.masked_fill(~valid.any(1, keepdim=True), 0).float()


def _cosine(vision: Tensor, directions: Tensor) -> Tensor:
    """[B, N, T]: the long side is not normalised but its products are divided by its norms, which saves a copy of it."""
    good = usable(vision).unsqueeze(2)
    v = working(vision)
    norm: Tensor = v.norm(dim=-1, keepdim=True).masked_fill(~good, 1)
    return ((v @ directions.transpose(1, 2)) / norm).masked_fill(~good, 0)
