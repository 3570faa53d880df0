"""The published computations, operator by operator from their formulas: what users run today.

Written from the papers and the notes on the released code, in the same number of tensor operations or fewer, so that no
ratio comes from a clumsy baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor


def scope(features: Tensor, saliency: Tensor, k: int) -> Tensor:
    """SCOPE (arXiv 2510.24214, Algorithm 1): cosine Gram matrix, then k greedy steps. In the order of choice."""
    normalised = features / features.norm(dim=-1, keepdim=True)
    return greedy_coverage(torch.bmm(normalised, normalised.transpose(1, 2)), saliency, k)


def greedy_coverage(similarity: Tensor, weight: Tensor, k: int) -> Tensor:
    """The greedy loop alone: every step evaluates the gain of every candidate."""
    b, n, _ = similarity.shape
    rows = torch.arange(b)
    covered = similarity.new_zeros(b, n, 1)
    chosen = torch.zeros(b, n, dtype=torch.bool)
    picks = torch.empty(b, k, dtype=torch.int64)
    zero = similarity.new_zeros(())
    for step in range(k):
        candidates = similarity.masked_fill(chosen.unsqueeze(1), 0)
        gain = torch.maximum(candidates - covered, zero).sum(1)
        score = (gain * weight).masked_fill(chosen, -torch.inf)
        pick = score.argmax(1)
        picks[:, step] = pick
        chosen[rows, pick] = True
        covered = torch.maximum(covered, similarity[rows, :, pick].unsqueeze(-1))
    return picks


def cls_attention(query: Tensor, key: Tensor) -> Tensor:
    """The class token's row of a full attention map [B, H, T, T], as `output_attentions=True` gives it; mean over heads.

    ``query`` is that of all T tokens.
    """
    attention = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return attention[:, :, 0, 1:].mean(1)
