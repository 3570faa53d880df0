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
    rows = torch.arange(b, device=similarity.device)
    covered = similarity.new_zeros(b, n, 1)
    chosen = torch.zeros(b, n, dtype=torch.bool, device=similarity.device)
    picks = torch.empty(b, k, dtype=torch.int64, device=similarity.device)
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
    attention: Tensor = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return attention[:, :, 0, 1:].mean(1)


def graph_propagate(features: Tensor, *, threshold: float = 0.5, temperature: float = 0.03, iterations: int = 5) -> Tensor:
    """G-Prune (arXiv 2501.02268): row-softmax of the thresholded similarities, its matrix power, norms through it, degree."""
    normalised = torch.nn.functional.normalize(features, dim=-1)
    similarity = torch.bmm(normalised, normalised.transpose(1, 2))
    logits = (similarity / temperature).masked_fill(similarity < threshold, -5000)
    transition = logits.softmax(-1)
    degree = (transition > 0).sum(-1)
    power = torch.linalg.matrix_power(transition, iterations)
    return torch.bmm(features.norm(dim=-1).unsqueeze(1), power).squeeze(1) / degree


def attention_profile(query: Tensor, key: Tensor, *, prefix: int = 1, softmax: bool = True) -> tuple[Tensor, Tensor]:
    """FoPru (arXiv 2411.14164): the map [B, H, T, T] without its class token, its head mean, and the means of that."""
    attention = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if softmax:
        attention = attention.softmax(-1)
    mean = attention[:, :, prefix:, prefix:].mean(1)
    return mean.mean(1), mean.mean(2)


def row_topk(scores: Tensor, rows: int, width: int) -> Tensor:
    """FoPru's row strategy: the rows of greatest sum, all tokens of each."""
    b, n = scores.shape
    best = scores.view(b, n // width, width).sum(2).topk(rows).indices
    return (best.unsqueeze(2) * width + torch.arange(width, device=scores.device)).flatten(1).sort(dim=1).values


def holov(features: Tensor, attention: Tensor, k: int, *, crops: int = 16, beta: float = 0.09) -> Tensor:
    """HoloV (arXiv 2510.02912, released code): image by image and run by run, with its reads back to the host.

    In published order; -1 where it emits a zero row. The variance is computed as there, with a mask for the diagonal.
    """
    return torch.stack([_holov(x, a, k, crops, beta) for x, a in zip(features, attention, strict=True)])


def _holov(x: Tensor, a: Tensor, k: int, crops: int, beta: float) -> Tensor:
    n = len(x)
    scores, runs, start = [], [], 0
    for c in range(crops):
        size = n // crops + (c < n % crops)
        if not size:
            continue
        run, mine = x[start : start + size], a[start : start + size]
        runs.append((start, mine))
        start += size
        if size == 1:
            scores.append(mine.mean())
            continue
        units = run / (run.norm(dim=-1, keepdim=True) + 1e-6)
        similarity = (units @ units.T) * (1 - torch.eye(size, device=x.device))
        mean = similarity.sum(1, keepdim=True) / (size - 1)
        variance = ((similarity - mean) ** 2).sum(1) / (size - 1)
        scaled = 1000 * mine
        gamma = scaled.abs().mean() / (variance.abs().mean() + 1e-6)
        scores.append((scaled + beta * gamma * variance).mean())
    score = torch.stack(scores)
    weight = score / (score.sum() + 1e-6)
    quota = (weight * k).floor().long()
    rest = k - quota.sum()
    if rest > 0:
        quota[weight.topk(min(int(rest), len(runs))).indices] += 1
    kept = []
    for c, (start, mine) in enumerate(runs):
        q = int(quota[c])
        if q >= len(mine):
            kept.append(start + torch.arange(len(mine), device=x.device))
        elif q > 0:
            kept.append(start + mine.topk(q).indices)
    picks = torch.cat(kept)[:k]
    return torch.cat([picks, picks.new_full((k - len(picks),), -1)])
