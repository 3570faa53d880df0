from __future__ import annotations

from torch import Tensor

from vtkernels.reference.cls_attention import cls_attention
from vtkernels.reference.topk_select import topk_select


def attention_topk(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    scale: float | None = None,
    prefix: int = 1,
    lengths: Tensor | None = None,
    sort: bool = True,
) -> tuple[Tensor, Tensor]:
    """The k tokens with the greatest :func:`cls_attention` (mean over heads), and that attention."""
    scores = cls_attention(query, key, scale=scale, prefix=prefix, lengths=lengths)
    lengths = None if lengths is None else lengths.clamp_min(0) - prefix
    return topk_select(scores, k, lengths=lengths, sort=sort), scores
