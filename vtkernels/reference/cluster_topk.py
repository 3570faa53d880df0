from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import ascending, valid_mask, working


def cluster_topk(
    labels: Tensor,
    relevance: Tensor,
    k: int,
    *,
    pool: float = 0.5,
    lengths: Tensor | None = None,
    sort: bool = True,
) -> Tensor:
    """Clusters in falling mean relevance until they hold ``max(k, ceil(pool * N - 1e-6))`` tokens; k shared over them in
    integers, one each and the rest by size; the most relevant tokens of each.
    """
    b, n = labels.shape
    if n == 0:
        return labels.new_empty((b, 0))
    valid = valid_mask(lengths, b, n, labels.device)
    home = labels.masked_fill(~valid | (labels < 0) | (labels >= n), n)  # n: of no cluster
    r = working(relevance)
    r = r.masked_fill(~r.isfinite(), -1)

    # summed in float64, so that the mean is the same in any order of the sum
    count = home.new_zeros(b, n + 1).scatter_add(1, home, torch.ones_like(home))[:, :n]
    total = r.new_zeros((b, n + 1), dtype=torch.float64).scatter_add(1, home, r.double())[:, :n]
    mean = (total / count.clamp_min(1)).to(r.dtype)
    falling = mean.masked_fill(count == 0, -torch.inf).sort(dim=1, descending=True, stable=True).indices

    size = count.gather(1, falling)
    before = size.cumsum(1) - size
    length = valid.sum(1, keepdim=True)
    wanted = (pool * length.double() - 1e-6).ceil().long().clamp_min(k)
    retrieved = (before < wanted) & (size > 0)
    clusters = retrieved.sum(1, keepdim=True)
    spare = (size - 1) * retrieved
    spares = spare.sum(1, keepdim=True)
    extra = ((clusters + spares).clamp_max(k) - clusters).clamp_min(0)
    share, remainder = extra * spare // spares.clamp_min(1), extra * spare % spares.clamp_min(1)
    by_remainder = remainder.masked_fill(~retrieved, -1).sort(dim=1, descending=True, stable=True).indices.argsort(1)
    one_more = by_remainder < extra - share.sum(1, keepdim=True)
    position = torch.arange(n, device=labels.device)
    quota = torch.where(retrieved & (position < k), 1 + share + one_more, 0)

    # tokens grouped by cluster, clusters as retrieved, falling relevance inside; tokens of no cluster last
    cluster = torch.cat([falling.argsort(1), home.new_full((b, 1), n)], 1).gather(1, home)
    order = r.sort(dim=1, descending=True, stable=True).indices
    cluster, by_cluster = cluster.gather(1, order).sort(dim=1, stable=True)
    order = order.gather(1, by_cluster)
    inside = cluster.clamp_max(n - 1)
    taken = (cluster < n) & (position - before.gather(1, inside) < quota.gather(1, inside))
    first = (~taken).int().sort(dim=1, stable=True).indices[:, :k]
    indices = order.gather(1, first).masked_fill(~taken.gather(1, first), -1)
    return ascending(indices)[0] if sort else indices
