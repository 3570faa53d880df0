"""Attention of one query row: logits of a chunk of keys per program, then softmax and the sum over heads.

1. ``logits_kernel`` reads the keys once, each program one chunk of one head, and leaves float32 logits with the maximum and the
   sum of exponentials of the chunk: B H T floats, no map.
2. ``_heads_kernel`` (or ``attention_topk``, which goes on to select) joins the chunks of a head in their order, and adds the
   heads in theirs.

An image's bits depend on nothing else in the call, nor on strides or on launch parameters of the second kernel: the product is
a ``tl.dot`` of a padded query, whose order of summation is that of the instruction; masses are sums of integers; the
probabilities of the heads are added one after the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton import _launch
from vtkernels.triton._common import finite, row_length


@triton.jit
def fixed(x):
    """A share of a mass whose greatest share is about 1, in units of 2**-40: sums of such integers are exact in any order."""
    return (x * 1099511627776.0).to(tl.int64)


@triton.jit
def floating(x):
    """The float32 of a sum of :func:`fixed`."""
    return x.to(tl.float32) * (1.0 / 1099511627776.0)


@triton.jit(do_not_specialize=("query_b", "query_h", "query_d", "lengths_b", "heads", "t", "chunks"))
def logits_kernel(
    query, key, lengths, logits, maxima, sums, scale,
    query_b, query_h, query_d, key_b, key_h, key_t, key_d, lengths_b, heads, t, d, chunks,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Chunk ``program_id(0)`` of head ``program_id(1)`` (counted over the batch): logits, their maximum, sum of exp."""
    chunk = tl.program_id(0)
    row = tl.program_id(1)
    batch = (row // heads).to(tl.int64)
    head = (row % heads).to(tl.int64)
    query += batch * query_b + head * query_h
    key += batch * key_b + head * key_h
    row = row.to(tl.int64)

    token = chunk * BLOCK_T + tl.arange(0, BLOCK_T)
    length = row_length(lengths, lengths_b, batch, t)
    valid = token < length
    first = tl.arange(0, 16)[:, None] == 0  # the least number of rows of a product; one is the query
    product = tl.zeros((16, BLOCK_T), tl.float32)
    for start in range(0, d, BLOCK_D):
        channel = start + tl.arange(0, BLOCK_D)
        inside = channel < d
        q = tl.load(query + channel.to(tl.int64) * query_d, mask=inside, other=0.0)
        q = tl.where(first, q[None, :], tl.zeros_like(q)[None, :])
        places = key + channel[:, None].to(tl.int64) * key_d + token[None, :].to(tl.int64) * key_t
        k = tl.load(places, mask=inside[:, None] & valid[None, :], other=0.0)
        if WIDEN:  # changes no product; the interpreter multiplies bfloat16 as integers
            q, k = q.to(tl.float32), k.to(tl.float32)
        product = tl.dot(q, k, product, input_precision="ieee")
    logit = tl.sum(tl.where(first, product, 0.0), axis=0) * scale  # other rows are NaN where a key is not finite
    logit = tl.where(valid & finite(logit), logit, float("-inf"))
    tl.store(logits + row * t + token, logit, mask=token < t)
    maximum = tl.max(logit, axis=0)
    exponentials = tl.exp(logit - tl.where(maximum == float("-inf"), 0.0, maximum))
    tl.store(maxima + row * chunks + chunk, maximum)
    tl.store(sums + row * chunks + chunk, floating(tl.sum(fixed(exponentials), axis=0)))


@triton.jit
def attention_of(
    logits, maxima, sums, norms, batch, token, valid, heads, t, chunks, denominator,
    BLOCK: tl.constexpr, HEADS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Softmax over the whole row at ``token``, added over the heads and divided by ``denominator``; 0 where not valid.

    ``norms``: 2 * heads floats of this program alone, for the maximum and the reciprocal mass of each head.
    """
    rows = batch * heads
    for first in range(0, heads, HEADS):
        head = first + tl.arange(0, HEADS)
        place = (rows + head)[:, None] * chunks
        maximum = tl.full((HEADS,), float("-inf"), tl.float32)
        for start in range(0, chunks, CHUNKS):
            chunk = start + tl.arange(0, CHUNKS)
            inside = (head < heads)[:, None] & (chunk < chunks)[None, :]
            of_chunk = tl.load(maxima + place + chunk[None, :], mask=inside, other=float("-inf"))
            maximum = tl.maximum(maximum, tl.max(of_chunk, axis=1))
        maximum = tl.where(maximum == float("-inf"), 0.0, maximum)  # a head without any mass gives none
        mass = tl.zeros((HEADS,), tl.int64)
        for start in range(0, chunks, CHUNKS):
            chunk = start + tl.arange(0, CHUNKS)
            inside = (head < heads)[:, None] & (chunk < chunks)[None, :]
            of_chunk = tl.load(maxima + place + chunk[None, :], mask=inside, other=float("-inf"))
            in_chunk = tl.load(sums + place + chunk[None, :], mask=inside, other=0.0)
            mass += tl.sum(fixed(in_chunk * tl.exp(of_chunk - maximum[:, None])), axis=1)
        tl.store(norms + 2 * head, maximum, mask=head < heads)
        tl.store(norms + 2 * head + 1, 1.0 / floating(tl.where(mass == 0, 1, mass)), mask=head < heads)
    tl.debug_barrier()  # the norms are read back by other threads of this program
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, heads, HEADS):
        for i in tl.static_range(HEADS):  # unrolled: the loads of several heads are in flight at once
            head = tl.minimum(first + i, heads - 1)
            logit = tl.load(logits + (rows + head) * t + token, mask=valid, other=float("-inf"))
            share = tl.load(norms + 2 * head + 1) * tl.where(first + i < heads, 1.0, 0.0)
            total += tl.exp(logit - tl.load(norms + 2 * head)) * share
    return total / denominator


@triton.jit(do_not_specialize=("heads", "t", "prefix", "chunks"))
def _heads_kernel(
    logits, maxima, sums, norms, out, heads, t, prefix, chunks, denominator,
    BLOCK_N: tl.constexpr, HEADS: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    norms += (batch * tl.num_programs(0) + tl.program_id(0)) * 2 * heads
    n = t - prefix
    attention = attention_of(
        logits, maxima, sums, norms, batch, index + prefix, index < n, heads, t, chunks, denominator, BLOCK_N, HEADS, CHUNKS
    )
    tl.store(out + batch * n + index, attention, mask=index < n)


def launch_logits(query: Tensor, key: Tensor, scale: float | None, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """First launch: float32 logits [B, H, T], and of every chunk of a row the maximum and the sum of exp(logit - maximum)."""
    b, h, t, d = key.shape
    launch = _launch.parameters("cls_attention_logits", key.device, t=t, d=d)
    chunks = triton.cdiv(t, launch["BLOCK_T"])
    logits = torch.empty((b, h, t), dtype=torch.float32, device=key.device)
    maxima, sums = torch.empty((2, b, h, chunks), dtype=torch.float32, device=key.device)
    logits_kernel[chunks, b * h](
        query, key, lengths, logits, maxima, sums, d**-0.5 if scale is None else float(scale),
        *query.stride(), *key.stride(), 0 if lengths is None else lengths.stride(0), h, t, d, chunks,
        WIDEN=_launch.interpreted(), **launch,
    )  # fmt: skip
    return logits, maxima, sums


def launch_heads(parts: tuple[Tensor, Tensor, Tensor], prefix: int, denominator: int) -> Tensor:
    """Second launch: float32 attention [B, T - prefix]."""
    logits, maxima, _ = parts
    b, h, t = logits.shape
    n = t - prefix
    out = torch.empty((b, n), dtype=torch.float32, device=logits.device)
    launch = _launch.parameters("cls_attention_heads", logits.device, n=n, h=h)
    programs = triton.cdiv(n, launch["BLOCK_N"])
    norms = torch.empty((b, programs, h, 2), dtype=torch.float32, device=logits.device)
    _heads_kernel[programs, b](*parts, norms, out, h, t, prefix, maxima.shape[2], float(denominator), **launch)
    return out


def cls_attention(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    reduce: str = "mean",
    lengths: Tensor | None = None,
) -> Tensor:
    """As ``reference.cls_attention``. Two launches; the keys are read once, B H T floats are written and read again."""
    _launch.refuse_float64("cls_attention", query=query, key=key)
    b, h, t, _ = key.shape
    if b == 0 or t == prefix:
        return torch.empty((b, t - prefix), dtype=torch.float32, device=key.device)
    return launch_heads(launch_logits(query, key, scale, lengths), prefix, h if reduce == "mean" else 1)


def _logits_build(label: str, dtype: str, d: int) -> _launch.Build:
    use = _launch.default_parameters("cls_attention_logits", t=577, d=d)
    launch = _launch.options(use)
    strides = ("query_b", "query_h", "query_d", "key_b", "key_h", "key_t", "lengths_b", "heads", "t", "d", "chunks")
    signature = {"query": dtype, "key": dtype, "logits": "*fp32", "maxima": "*fp32", "sums": "*fp32", "scale": "fp32"}
    return _launch.Build(
        label,
        logits_kernel,
        signature | dict.fromkeys(strides, "i32"),
        {"lengths": None, "key_d": 1, "WIDEN": False, **use},
        divisible=("key_b", "key_h", "key_t", "d"),
        **launch,
    )


def _heads_build() -> _launch.Build:
    use = _launch.default_parameters("cls_attention_heads", n=576, h=16)
    launch = _launch.options(use)
    signature = dict.fromkeys(("logits", "maxima", "sums", "norms", "out"), "*fp32") | {"denominator": "fp32"}
    signature |= dict.fromkeys(("heads", "t", "prefix", "chunks"), "i32")
    return _launch.Build("heads", _heads_kernel, signature, use, **launch)


COMPILE = [
    _logits_build("logits d=64 fp16", "*fp16", 64),
    _logits_build("logits d=64 fp32", "*fp32", 64),
    _logits_build("logits d=128 bf16", "*bf16", 128),
    _logits_build("logits d=128 fp32", "*fp32", 128),
    _heads_build(),
]
