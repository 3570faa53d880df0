from __future__ import annotations

from torch import Tensor

from vtkernels.reference.gather_tokens import gather_tokens


def compact_(tokens: Tensor, indices: Tensor) -> None:
    """``tokens[b, s] = tokens[b, indices[b, s]]`` in place, a zero row where the index is -1; later rows stay."""
    tokens[:, : indices.shape[1]] = gather_tokens(tokens, indices)
