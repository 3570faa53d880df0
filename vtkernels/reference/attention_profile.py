from __future__ import annotations

import torch
from torch import Tensor

from vtkernels.reference._common import valid_mask, working

_CHUNK = 64  # query rows at a time: their attention is about as large as the keys


def attention_profile(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    softmax: bool = True,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Column and row means of the head-averaged attention (or logits) without its first ``prefix`` rows and columns."""
    b, h, t, d = key.shape
    scale = d**-0.5 if scale is None else scale
    valid = valid_mask(lengths, b, t, key.device)
    counted = valid.clone()
    counted[:, :prefix] = False
    profile = _attention_profile if softmax else _logit_profile
    received, given = profile(working(query), working(key), scale, valid, counted)
    share = h * counted.sum(1, keepdim=True).clamp_min(1)
    received, given = ((x.masked_fill(~counted, 0) / share)[:, prefix:] for x in (received, given))
    return _own(received), _own(given)


def _own(x: Tensor) -> Tensor:
    """float32 in memory of its own."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _attention_profile(q: Tensor, k: Tensor, scale: float, valid: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [B, T] of the softmax over its counted rows and over its counted columns, a chunk of rows at a time."""
    b, _, t, _ = k.shape
    received, given = k.new_zeros(b, t), k.new_zeros(b, t)
    columns = k.transpose(2, 3).contiguous()
    for start in range(0, t, _CHUNK):
        rows = slice(start, start + _CHUNK)
        logits = (q[:, :, rows] @ columns).mul_(scale)
        no_mass = ~logits.isfinite() | ~valid[:, None, None]
        attention = logits.masked_fill_(no_mass, -torch.inf).softmax(-1)
        attention = attention.masked_fill_(no_mass, 0)  # a row without any mass would be NaN
        attention.masked_fill_(~(counted[:, None, rows, None] & counted[:, None, None]), 0)
        received += attention.sum((1, 2))
        given[:, rows] = attention.sum((1, 3))
    return received, given


def _logit_profile(q: Tensor, k: Tensor, scale: float, valid: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Sums [B, T] of the logits over their counted rows and columns, from the sums of the queries and of the keys."""
    total_q, bad_q = _total(q, counted)
    total_k, bad_k = _total(k, counted)
    received = (k @ total_q).squeeze(-1).mul_(scale).masked_fill_(bad_k, torch.nan).sum(1)
    given = (q @ total_k).squeeze(-1).mul_(scale).masked_fill_(bad_q, torch.nan).sum(1)
    return received, given


def _total(x: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, d, 1], the sum of the counted rows, and [B, H, T], the rows that are not finite and count as zero."""
    bad = ~x.float().square().sum(-1).isfinite()
    left_out = (bad | ~counted.unsqueeze(1)).unsqueeze(-1)
    return x.masked_fill(left_out, 0).sum(2).unsqueeze(-1), bad
