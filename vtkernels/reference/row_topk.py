from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference.topk_select import topk_select


def row_topk(scores: Tensor, rows: int, *, width: int, sort: bool = True) -> Tensor:
    """All tokens of the image rows with the greatest sums, which are float64: the lowest row first among equals."""
    b, n = scores.shape
    sums = scores.reshape(b, n // width, width).sum(2, dtype=torch.float64)
    first = topk_select(sums, rows, sort=sort) * width
    # a row wider than the image is a row of no image, and no memory for it need be had
    return (first.unsqueeze(2) + torch.arange(min(width, n), device=scores.device)).flatten(1)
