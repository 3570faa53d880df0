from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference.gather_tokens import gather_tokens


def merge_tokens(tokens: Tensor, indices: Tensor, assignment: Tensor) -> Tensor:
    """The mean of each kept token and of the tokens assigned to its slot; a zero row where the index is -1."""
    b, n, d = tokens.shape
    k = indices.shape[1]
    absorbed, count = members(indices, assignment)
    image = torch.arange(b, device=tokens.device).unsqueeze(1)
    row = torch.where(absorbed < 0, b * k, image * k + absorbed).flatten()  # the last row takes what is dropped
    # summed in float64, so that the mean is the same in any order of the sum
    total = tokens.new_zeros((b * k + 1, d), dtype=torch.float64).index_add(0, row, tokens.reshape(b * n, d).double())
    total = total[:-1].view(b, k, d) + gather_tokens(tokens, indices)
    return (total / count.unsqueeze(2)).to(tokens.dtype)


def members(indices: Tensor, assignment: Tensor) -> tuple[Tensor, Tensor]:
    """int64 [B, N]: the slot that absorbs each token, -1 for none and for kept tokens; int64 [B, K]: tokens of each slot,
    the kept one included, at least 1.
    """
    b, n = assignment.shape
    k = indices.shape[1]
    if n == 0 or k == 0:
        return assignment.new_full((b, n), -1), torch.ones_like(indices)
    empty = indices < 0
    kept = assignment.new_zeros(b, n + 1).scatter(1, indices.masked_fill(empty, n), 1)[:, :n].bool()
    nowhere = kept | (assignment < 0) | (assignment >= k)
    slot = assignment.masked_fill(nowhere, 0)
    nowhere = nowhere | empty.gather(1, slot)
    return slot.masked_fill(nowhere, -1), torch.ones_like(indices).scatter_add(1, slot, (~nowhere).long())
