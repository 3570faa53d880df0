from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import ascending, valid_mask, working
from vtkernels.reference.topk_select import topk_select

_EPS = 1e-6  # of the published code: in the row norms, under the variance, in the sum of the scores


def crop_topk(
    attention: Tensor,
    features: Tensor | None,
    k: int,
    *,
    crops: int = 16,
    beta: float = 0.09,
    variant: str = "released",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> Tensor:
    """The budget is split over runs of tokens by ``score_c = 1000 mean(a) (1 + beta v / (v + eps))`` with ``v`` the mean
    variance of a token's similarities in its run; inside a run the tokens of greatest attention are kept.
    """
    b, n = attention.shape
    if n == 0:
        return attention.new_empty((b, 0), dtype=torch.int64)
    a = working(attention)
    valid = valid_mask(lengths, b, n, a.device)
    mass = a.masked_fill(~(valid & a.isfinite()), 0).clamp_min(0)
    rank_by = mass.masked_fill(~a.isfinite(), torch.nan)

    # the first (length mod crops) runs get one token more; a run without tokens vanishes
    length = valid.sum(1, keepdim=True)
    column = torch.arange(min(crops, n), device=a.device)
    size = length // crops + (column < length % crops)
    start = size.cumsum(1) - size
    width = -(-n // crops)  # of the longest run there can be
    offset = torch.arange(width, device=a.device)
    inside = offset < size.unsqueeze(2)
    position = (start.unsqueeze(2) + offset).masked_fill(~inside, 0)
    mean = mass.gather(1, position.flatten(1)).view_as(position).masked_fill(~inside, 0).sum(2) / size.clamp_min(1)

    token = torch.arange(n, device=a.device).expand(b, n).contiguous()
    home = torch.searchsorted(start, token, right=True) - 1
    variance = None if features is None else _variance(features, position, inside, size).to(a.dtype)
    spread = None if variance is None else variance.sum(2) / size.clamp_min(1)
    if variant == "paper":
        assert variance is not None and spread is not None  # the checks refuse "paper" without features
        gamma = mean / (spread + _EPS)
        slot = home * width + (token - start.gather(1, home)).clamp(0, width - 1)
        rank_by = rank_by + gamma.gather(1, home) * variance.flatten(1).gather(1, slot)
        # mean(gamma V + A) is twice mean(A): the share of a run is its share of the attention
        score, eps = mean, 0.0
    else:
        factor = 1 + beta if spread is None else 1 + beta * (spread / (spread + _EPS))
        score, eps = torch.where(size > 1, 1000 * mean * factor, mean), _EPS
    weight = score / (score.sum(1, keepdim=True) + eps)
    weight = weight.masked_fill(~weight.isfinite(), 0)

    quota = (weight * k).floor().long()
    by_weight = weight.masked_fill(size == 0, -1).sort(dim=1, descending=True, stable=True).indices
    place = by_weight.argsort(1)
    quota = quota + ((place < k - quota.sum(1, keepdim=True)) & (size > 0))
    if variant != "released":
        quota = _redistribute(quota, weight, size, by_weight, k)

    # grouped by run, falling inside it: runs are contiguous, so the group of a place in this list is that of the token there
    order = topk_select(rank_by, n, lengths=lengths, sort=False)
    group = home.gather(1, order.clamp_min(0)).masked_fill(order < 0, n)
    order = order.gather(1, group.sort(dim=1, stable=True).indices)
    order = torch.where((quota >= size).gather(1, home), token, order)  # a whole run is published in natural order
    taken = valid & (token - start.gather(1, home) < quota.gather(1, home))
    first = (~taken).int().sort(dim=1, stable=True).indices[:, :k]
    indices = order.gather(1, first).masked_fill(~taken.gather(1, first), -1)
    return ascending(indices)[0] if sort else indices


def _variance(features: Tensor, position: Tensor, inside: Tensor, size: Tensor) -> Tensor:
    """[B, C, M]: the variance of each token's similarities to its run, its own zero included, over M - 1; 0 outside."""
    b, c, m = position.shape
    rows = position.flatten(1).unsqueeze(2).expand(b, c * m, features.shape[2])
    x = working(features.gather(1, rows)).view(b, c, m, features.shape[2])
    product = x @ x.transpose(2, 3)
    square = product.diagonal(dim1=2, dim2=3)
    usable = inside & square.float().isfinite() & (square.float() > 0)
    scale = 1 / (square.masked_fill(~usable, 1).sqrt() + _EPS)
    pair = usable.unsqueeze(2) & usable.unsqueeze(3)
    pair.diagonal(dim1=2, dim2=3).fill_(False)
    similarity = (product * scale.unsqueeze(2) * scale.unsqueeze(3)).masked_fill(~pair, 0)
    others = (size - 1).clamp_min(1).unsqueeze(2)
    average = similarity.sum(3) / others
    variance = (similarity.square().sum(3) - (others - 1) * average.square()) / others
    return variance.clamp_min(0).masked_fill(~inside, 0)


def _redistribute(quota: Tensor, weight: Tensor, size: Tensor, by_weight: Tensor, k: int) -> Tensor:
    """Quota beyond the size of a run goes to runs with room in proportion to weight times room, round by round, until k
    tokens are given or no run has room.

    A round fills a run, or leaves fewer tokens than there are runs with room; from then on every round gives a token at
    least. So 2 C rounds are enough, and later ones change nothing. The products are exact in float64.
    """
    w, size, quota = (x.gather(1, by_weight) for x in (weight.double(), size, quota))
    quota = torch.minimum(quota, size)
    for _ in range(min(k, 2 * size.shape[1])):
        left, room = k - quota.sum(1, keepdim=True), size - quota
        pull = w * room
        total = pull.sum(1, keepdim=True)
        pull = torch.where(total > 0, pull, room.double())
        total = torch.where(total > 0, total, room.sum(1, keepdim=True).clamp_min(1).double())
        share = torch.minimum((left * pull / total).floor().long(), room)
        one = (room > 0) & ((room > 0).cumsum(1) <= left)
        quota = quota + torch.where(share.any(1, keepdim=True), share, one.long())
    return torch.zeros_like(quota).scatter(1, by_weight, quota)
