from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference.gather_tokens import gather_tokens


def compact_(tokens: Tensor, indices: Tensor) -> None:
    """``tokens[b, s] = tokens[b, indices[b, s]]`` in place, a zero row where the index is -1; later rows stay."""
    if indices.device.type == "cpu":
        key = indices.masked_fill(indices == -1, torch.iinfo(torch.int64).max)
        ordered = (key[:, 1:] > key[:, :-1]) | (indices[:, 1:] == -1)
        if not bool(ordered.all()):
            raise ValueError("vtkernels::compact_: indices must be ascending and distinct, with -1 only at the end")
    tokens[:, : indices.shape[1]] = gather_tokens(tokens, indices)
