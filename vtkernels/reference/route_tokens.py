from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import normalise, usable, valid_mask, working


def route_tokens(features: Tensor, indices: Tensor, labels: Tensor | None = None, *, lengths: Tensor | None = None) -> Tensor:
    """The slot of the kept token of greatest cosine (and the same label), lowest slot on ties; a kept token has its own."""
    b, n, d = features.shape
    k = indices.shape[1]
    if n == 0 or k == 0:
        return indices.new_full((b, n), -1)
    valid = valid_mask(lengths, b, n, features.device)
    kept = indices.clamp_min(0)
    open_slot = (indices >= 0) & valid.gather(1, kept)
    allowed = open_slot.unsqueeze(1) & valid.unsqueeze(2)
    if labels is not None:
        label = labels.gather(1, kept)
        allowed = allowed & (labels.unsqueeze(2) == label.unsqueeze(1)) & ((label >= 0) & (label < n)).unsqueeze(1)
    directions = normalise(features.gather(1, kept.unsqueeze(2).expand(b, k, d)))
    # cosine times the token's own norm, which does not change which slot is the greatest
    similarity = (working(features) @ directions.transpose(1, 2)).masked_fill(~usable(features).unsqueeze(2), 0)
    similarity = similarity.masked_fill(~allowed, -torch.inf)
    nearest = similarity.argmax(2).masked_fill(~allowed.any(2), -1)  # argmax gives the first of equals
    slot = torch.arange(k, device=indices.device).masked_fill(~open_slot, k)
    own = indices.new_full((b, n), k).scatter_reduce(1, kept, slot, "amin")
    return torch.where(own < k, own, nearest)
