from __future__ import annotations

from torch import Tensor


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """``out[b, s] = tokens[b, indices[b, s]]``, a zero row where the index is -1."""
    b, k = indices.shape
    if tokens.shape[1] == 0:  # nothing to read from: only -1 can be asked for
        return tokens.new_zeros(b, k, tokens.shape[2])
    rows = indices.masked_fill(indices == -1, 0).unsqueeze(-1).expand(b, k, tokens.shape[2])
    return tokens.gather(1, rows).masked_fill((indices == -1).unsqueeze(-1), 0)
