from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import normalise, valid_mask, working
from vtkernels.reference.coverage_select import coverage_select


def scope_select(
    features: Tensor,
    saliency: Tensor | None,
    k: int,
    *,
    alpha: float = 1.0,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> Tensor:
    """:func:`coverage_select` on the cosine similarity of the features, weighted by ``max(0, saliency) ** alpha``."""
    b, n, _ = features.shape
    x = normalise(features) * valid_mask(lengths, b, n, features.device).unsqueeze(-1)
    weight = None
    if saliency is not None:
        a = working(saliency)
        weight = (a.clamp_min(0) ** alpha).masked_fill(~a.isfinite(), torch.nan)
    return coverage_select(x @ x.transpose(1, 2), weight, k, combine=combine, lengths=lengths, sort=sort)[0]
