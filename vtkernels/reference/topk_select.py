from __future__ import annotations

from torch import Tensor

from vtkernels.reference._common import ascending, valid_mask


def topk_select(scores: Tensor, k: int, *, lengths: Tensor | None = None, sort: bool = True) -> Tensor:
    """The k best scores of each row: falling, NaN after -inf, the lowest index first among equals."""
    b, n = scores.shape
    valid = valid_mask(lengths, b, n, scores.device)
    order = scores.nan_to_num(nan=-float("inf"), posinf=float("inf"), neginf=-float("inf"))
    order = order.sort(dim=1, descending=True, stable=True).indices
    last = scores.isnan().int().masked_fill(~valid, 2)  # 0 a number, 1 NaN, 2 invalid
    order = order.gather(1, last.gather(1, order).sort(dim=1, stable=True).indices)[:, :k]
    indices = order.masked_fill(~valid.gather(1, order), -1)
    return ascending(indices)[0] if sort else indices
