from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import directions, valid_mask


def graph_propagate(
    features: Tensor,
    *,
    threshold: float = 0.5,
    temperature: float = 0.03,
    iterations: int = 5,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Norms sent ``iterations`` times along a row-softmax of the similarities that reach the threshold, over the degree."""
    b, n, _ = features.shape
    x, norm = directions(features)
    usable = valid_mask(lengths, b, n, features.device) & (norm > 0)
    # one triangle, mirrored: an edge has one weight, and a token is exactly 1 from itself
    similarity = (x @ x.transpose(1, 2)).tril(-1)
    similarity = (similarity + similarity.transpose(1, 2)).clamp_max(1)
    similarity.diagonal(dim1=1, dim2=2).fill_(1)
    tiny = torch.finfo(torch.float32).tiny  # what is above 0 stays above 0 in float32
    edge = (similarity >= max(threshold, tiny)) & usable.unsqueeze(1) & usable.unsqueeze(2)
    # 1 is the greatest similarity of every row that has an edge, so 1 is what the softmax subtracts
    weight = ((similarity - 1) / max(temperature, tiny)).exp().masked_fill(~edge, 0)
    total = weight.sum(2).masked_fill(~usable, 1)
    score = norm.masked_fill(~usable, 0)
    for _ in range(iterations):
        score = (weight @ (score / total).unsqueeze(2)).squeeze(2)  # the weights are symmetric, so row times matrix is this
    degree = edge.sum(2, dtype=torch.int32)
    return (score / degree.clamp_min(1)).float(), degree
