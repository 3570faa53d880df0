"""``cls_attention`` and ``topk_select`` in two launches: the program that adds the heads of an image selects from its sum."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton import _launch
from vtkernels.triton._common import INVALID_KEY, order_key
from vtkernels.triton.cls_attention import attention_of, launch_heads, launch_logits
from vtkernels.triton.topk_select import BLOCK_LIMIT, finish, ordered, topk_select, write_chosen


@triton.jit(do_not_specialize=("lengths_b", "heads", "t", "chunks", "k"))
def _select_kernel(
    logits, maxima, sums, norms, lengths, scores, out, lengths_b, heads, t, prefix, chunks, k, denominator,
    BLOCK: tl.constexpr, SORT: tl.constexpr, ORDERED: tl.constexpr, HEADS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(0).to(tl.int64)
    n = t - prefix
    if lengths is None:
        length = n
    else:
        length = tl.minimum(tl.maximum(tl.load(lengths + batch * lengths_b), 0), t).to(tl.int32)
        length = tl.maximum(length - prefix, 0)
    index = tl.arange(0, BLOCK)
    score = attention_of(
        logits, maxima, sums, norms + batch * 2 * heads, batch, index + prefix, index < n, heads, t, chunks, denominator,
        BLOCK, HEADS, CHUNKS,
    )  # fmt: skip
    tl.store(scores + batch * n + index, score, mask=index < n)
    key = tl.where(index < length, order_key(score), INVALID_KEY)
    write_chosen(out + batch * k, 1, key, index, tl.minimum(length, k), k, SORT, ORDERED)


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
    """As ``reference.attention_topk``. Two launches; three for rows of more than ``BLOCK_LIMIT`` tokens."""
    _launch.refuse_float64("attention_topk", query=query, key=key)
    b, h, t, _ = key.shape
    n = t - prefix
    if b == 0 or n == 0:
        empty = torch.empty((b, n), dtype=torch.float32, device=key.device)
        return torch.empty((b, k), dtype=torch.int64, device=key.device), empty
    parts = launch_logits(query, key, scale, lengths)
    if n > BLOCK_LIMIT:
        scores = launch_heads(parts, prefix, h)
        return topk_select(scores, k, lengths=None if lengths is None else lengths.clamp_min(0) - prefix, sort=sort), scores
    out = torch.empty((b, k), dtype=torch.int64, device=key.device)
    scores = torch.empty((b, n), dtype=torch.float32, device=key.device)
    launch = _launch.parameters("attention_topk", key.device, n=n, h=h)
    norms = torch.empty((b, h, 2), dtype=torch.float32, device=key.device)
    lengths_b = 0 if lengths is None else lengths.stride(0)
    _select_kernel[(b,)](
        *parts, norms, lengths, scores, out, lengths_b, h, t, prefix, parts[1].shape[2], k, float(h),
        BLOCK=_launch.next_power_of_2(n), SORT=sort, ORDERED=ordered(k, sort), **launch,
    )  # fmt: skip
    return finish(out, sort), scores


def _build(label: str, n: int, order: int) -> _launch.Build:
    use = _launch.default_parameters("attention_topk", n=n, h=16)
    launch = _launch.options(use)
    use |= {"lengths": None, "prefix": 1, "BLOCK": _launch.next_power_of_2(n), "SORT": order == 0, "ORDERED": order}
    signature = dict.fromkeys(("logits", "maxima", "sums", "norms", "scores"), "*fp32") | {"out": "*i64", "denominator": "fp32"}
    signature |= dict.fromkeys(("lengths_b", "heads", "t", "chunks", "k"), "i32")
    return _launch.Build(label, _select_kernel, signature, use, **launch)


COMPILE = [
    _build("select N=576", 576, 0),
    _build("select N=576 k=64 in order of choice", 576, 64),
    _build("select N=2880", 2880, 0),
    _build("select N=8192", 8192, 0),
]
