from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import normalise, valid_mask


def token_clusters(features: Tensor, *, threshold: float, lengths: Tensor | None = None) -> Tensor:
    """Connected components of the graph with an edge where ``cos(x_i, x_j) >= threshold``, named by their smallest token."""
    b, n, _ = features.shape
    valid = valid_mask(lengths, b, n, features.device)
    x = normalise(features) * valid.unsqueeze(2)
    similarity = (x @ x.transpose(1, 2)).tril(-1)
    edge = similarity >= max(threshold, torch.finfo(torch.float32).tiny)  # what is above 0 stays above 0 in float32
    edge = edge | edge.transpose(1, 2)

    # Every component hooks onto its smallest neighbour. That can only make cycles of two, of which the smaller stays, so a
    # round at least halves the components that are not complete.
    token = torch.arange(n, device=x.device).expand(b, n)
    nobody = torch.full_like(token, n)
    root, doublings = token, max(n - 1, 0).bit_length()
    for _ in range(doublings):
        foreign = edge & (root.unsqueeze(1) != root.unsqueeze(2))
        neighbour = torch.where(foreign, root.unsqueeze(1), n).amin(2)
        smallest = nobody.scatter_reduce(1, root, neighbour, "amin")
        parent = torch.where(smallest < n, smallest, token)
        parent = torch.where((parent.gather(1, parent) == token) & (token < parent), token, parent)
        for _ in range(doublings):
            parent = parent.gather(1, parent)
        root = parent.gather(1, root)
    label = nobody.scatter_reduce(1, root, token, "amin").gather(1, root)
    return label.masked_fill(~valid, -1)
