from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import ascending, valid_mask, working


def coverage_select(
    similarity: Tensor,
    weight: Tensor | None,
    k: int,
    *,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> tuple[Tensor, Tensor]:
    """``covered_i = 0``; then k times: choose the alive j of greatest ``sum_i max(0, C_ij - covered_i)``, multiplied by or
    added to ``weight_j``, and raise ``covered_i`` to ``C_ij``.
    """
    b, m, n = similarity.shape
    c = working(similarity)
    c = c.masked_fill(~c.isfinite(), 0)
    w = c.new_ones(b, n) if weight is None else working(weight).to(c.dtype)
    w = w.masked_fill(~w.isfinite(), torch.nan).clamp_min(0)
    if weight is None and combine == "add":
        w = torch.zeros_like(w)
    alive = valid_mask(lengths, b, n, c.device)
    covered = c.new_zeros(b, m, 1)
    rows = torch.arange(b, device=c.device)
    indices = torch.full((b, k), -1, dtype=torch.int64, device=c.device)
    gains = torch.zeros(b, k, dtype=torch.float32, device=c.device)
    for step in range(k):
        gain = (c - covered).clamp_min_(0).sum(1)
        score = gain * w if combine == "multiply" else gain + w
        # scores are never negative: -1 ranks NaN after every finite score, -2 what is taken or invalid after that
        pick = torch.where(score.isnan(), -1.0, score).masked_fill(~alive, -2.0).argmax(1)
        found = alive[rows, pick]
        indices[:, step] = torch.where(found, pick, -1)
        gains[:, step] = torch.where(found, score[rows, pick], 0)
        chosen = c[rows, :, pick].unsqueeze(-1).masked_fill(~found[:, None, None], 0)
        covered = torch.maximum(covered, chosen)
        alive[rows, pick] = False
    if sort:
        indices, gains = ascending(indices, gains)
    return indices, gains
