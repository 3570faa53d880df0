"""The k best scores of a row: radix selection of the k-th greatest key, then one scan that writes the chosen tokens in order.

No sort is needed for ascending order, which is what a model takes: whoever beats the k-th key is chosen, ties at it are taken
from the lowest index, and a prefix sum is the output slot. ``sort=False`` orders the k chosen alone, as packed (key, index)
integers. All of it is integer work, so it has the same result in any order.

Rows of up to ``BLOCK_LIMIT`` tokens stay in registers, one program a row, two bits a round. Longer rows are read five times in
chunks, eight bits a round, from the cache they fit in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtkernels.triton import _launch
from vtkernels.triton._common import INVALID_KEY, NAN_KEY, order_key, pack, packed_index, row_length, widen

BLOCK_LIMIT = 8192  # tokens a program keeps in registers
ORDER_LIMIT = 2048  # chosen tokens that a program puts in order of choice; torch.sort takes more

_SIGN = tl.constexpr(-2147483648)
_LEAST = tl.constexpr(-9223372036854775808)
_NONE = tl.constexpr(0x7FFFFFFF)  # greater than the key of any score


@triton.jit
def kth_key(key, want):
    """The greatest t such that at least ``want`` of the keys are >= t: the key of rank ``want``; of rank 0, one above all.

    Two bits of t a round, from the top. The three counts of a round share one int64 sum: each is below 2**21.
    """
    prefix = tl.full((), 0, tl.int32)  # t with its sign bit flipped, so that bits add up in ascending order
    for i in range(16):
        shift = 30 - 2 * i
        one = prefix | (tl.full((), 1, tl.int32) << shift)
        two = prefix | (tl.full((), 2, tl.int32) << shift)
        three = one | two
        counts = (key >= (one ^ _SIGN)).to(tl.int64)
        counts += (key >= (two ^ _SIGN)).to(tl.int64) << 21
        counts += (key >= (three ^ _SIGN)).to(tl.int64) << 42
        counts = tl.sum(counts, axis=0)
        prefix = tl.where(counts & 0x1FFFFF >= want, one, prefix)
        prefix = tl.where((counts >> 21) & 0x1FFFFF >= want, two, prefix)
        prefix = tl.where(counts >> 42 >= want, three, prefix)
    return tl.where(want > 0, prefix ^ _SIGN, _NONE)


@triton.jit
def write_chosen(out, stride, key, index, want, k, SORT: tl.constexpr, ORDERED: tl.constexpr):
    """The ``want`` greatest keys of a block that holds a whole row to ``out``, -1 behind them up to k.

    Ascending, or in order of choice: ``ORDERED`` is a power of two >= k if this program does that, 0 to leave packed keys.
    """
    t = kth_key(key, want)
    above = key > t
    equal = key == t
    need = want - tl.sum(above.to(tl.int32), axis=0)
    seen = tl.cumsum(above.to(tl.int32) | (equal.to(tl.int32) << 16), axis=0)  # a block has no more than 2**15 tokens
    equal = equal & ((seen >> 16) <= need)
    slot = (seen & 0xFFFF) + tl.minimum(seen >> 16, need) - 1
    if SORT:
        tl.store(out + slot * stride, index.to(tl.int64), mask=above | equal)
        tl.store(out + index * stride, tl.full(index.shape, -1, tl.int64), mask=(index >= want) & (index < k))
    else:
        tl.store(out + slot * stride, pack(key, index), mask=above | equal)
        if ORDERED > 0:
            tl.debug_barrier()  # the chosen keys are read back by other threads of this program
            order_chosen(out, stride, want, k, ORDERED)
        else:
            behind = pack(tl.full(index.shape, INVALID_KEY, tl.int32), index)
            tl.store(out + index * stride, behind, mask=(index >= want) & (index < k))


@triton.jit
def order_chosen(out, stride, want, k, ORDERED: tl.constexpr):
    """Packed keys in ``out[:want]`` to indices in order of choice, -1 behind them.

    A key's place is the number of greater ones: for so few, counting takes less time than the rounds of a sorting network.
    """
    WIDTH: tl.constexpr = 16 if ORDERED <= 256 else (4096 // ORDERED if ORDERED <= 1024 else 4)  # a count each in registers
    slot = tl.arange(0, ORDERED)
    packed = tl.load(out + slot * stride, mask=slot < want, other=_LEAST)
    greater = tl.zeros((ORDERED, WIDTH), tl.int32)
    for start in range(0, want, WIDTH):
        other = start + tl.arange(0, WIDTH)
        other = tl.load(out + other * stride, mask=other < want, other=_LEAST)
        greater += (other[None, :] > packed[:, None]).to(tl.int32)
    place = tl.sum(greater, axis=1)
    tl.debug_barrier()  # every key is read before an index takes its place
    tl.store(out + place * stride, packed_index(packed), mask=slot < want)
    tl.store(out + slot * stride, tl.full((ORDERED,), -1, tl.int64), mask=(slot >= want) & (slot < k))


@triton.jit(do_not_specialize=("out_b", "lengths_b", "k"))
def _row_kernel(
    scores, out, lengths, scores_b, scores_n, out_b, lengths_b, n, k,
    BLOCK: tl.constexpr, SORT: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = row_length(lengths, lengths_b, row, n)
    index = tl.arange(0, BLOCK)
    valid = index < length
    x = tl.load(scores + row * scores_b + index.to(tl.int64) * scores_n, mask=valid, other=0.0)
    key = tl.where(valid, order_key(widen(x)), INVALID_KEY)
    write_chosen(out + row * out_b, 1, key, index, tl.minimum(length, k), k, SORT, ORDERED)


@triton.jit
def _load_keys(scores, stride, index, length):
    x = tl.load(scores + index.to(tl.int64) * stride, mask=index < length, other=0.0)
    return tl.where(index < length, order_key(widen(x)), INVALID_KEY)


@triton.jit(do_not_specialize=("out_b", "lengths_b", "k"))
def _chunks_kernel(
    scores, out, lengths, scores_b, scores_n, out_b, lengths_b, n, k,
    CHUNK: tl.constexpr, SORT: tl.constexpr, ORDERED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    length = row_length(lengths, lengths_b, row, n)
    want = tl.minimum(length, k)
    scores += row * scores_b
    out += row * out_b
    chunk = tl.arange(0, CHUNK)
    digits = tl.arange(0, 256)

    prefix = tl.full((), 0, tl.int32)  # digits found so far of the key with its sign bit flipped
    need = want  # rank among the keys that share them
    for i in tl.static_range(4):
        shift = 24 - 8 * i
        counts = tl.zeros((256,), tl.int32)
        for start in range(0, length, CHUNK):
            index = start + chunk
            key = _load_keys(scores, scores_n, index, length) ^ _SIGN
            same = index < length
            if i > 0:
                same = same & ((key >> (shift + 8)) == (prefix >> (shift + 8)))
            counts += tl.histogram((key >> shift) & 255, 256, mask=same)
        at_least = tl.cumsum(counts, axis=0, reverse=True)
        digit = tl.maximum(tl.sum((at_least >= need).to(tl.int32), axis=0) - 1, 0)
        need -= tl.sum(tl.where(digits == digit, at_least - counts, 0), axis=0)
        prefix = prefix | (digit << shift)
    t = tl.where(want > 0, prefix ^ _SIGN, _NONE)

    above_before = tl.full((), 0, tl.int32)
    equal_before = tl.full((), 0, tl.int32)
    for start in range(0, length, CHUNK):
        index = start + chunk
        key = _load_keys(scores, scores_n, index, length)
        above = (key > t).to(tl.int32)
        equal = (key == t).to(tl.int32)
        seen = tl.cumsum(above | (equal << 16), axis=0)
        seen_equal = equal_before + (seen >> 16)
        slot = (above_before + (seen & 0xFFFF) + tl.minimum(seen_equal, need) - 1).to(tl.int64)
        chosen = (above != 0) | ((equal != 0) & (seen_equal <= need))
        if SORT:
            tl.store(out + slot, index.to(tl.int64), mask=chosen)
        else:
            tl.store(out + slot, pack(key, index), mask=chosen)
        above_before += tl.sum(above, axis=0)
        equal_before += tl.sum(equal, axis=0)
    if ORDERED > 0:
        tl.debug_barrier()  # the chosen keys are read back by other threads of this program
        order_chosen(out, 1, want, k, ORDERED)
    else:
        for start in range(want, k, CHUNK):
            index = start + chunk
            nobody = tl.full((CHUNK,), INVALID_KEY, tl.int32)
            tl.store(out + index, tl.full((CHUNK,), -1, tl.int64) if SORT else pack(nobody, index), mask=index < k)


def ordered(k: int, sort: bool) -> int:
    """``ORDERED`` of the kernels: how many slots a program sorts; 0 where nothing is to be sorted or :func:`finish` does it."""
    return 0 if sort or k > ORDER_LIMIT else _launch.next_power_of_2(k)


def finish(out: Tensor, sort: bool) -> Tensor:
    """What the kernels leave to torch: the order of choice of more than ``ORDER_LIMIT`` tokens. Packed keys are distinct."""
    if sort or out.shape[1] <= ORDER_LIMIT:
        return out
    packed = out.sort(dim=1, descending=True).values
    return torch.where(packed >> 32 < NAN_KEY.value, -1, 0x7FFFFFFF - (packed & 0x7FFFFFFF))


def topk_select(scores: Tensor, k: int, *, lengths: Tensor | None = None, sort: bool = True) -> Tensor:
    """As ``reference.topk_select``. One launch, O(N) work a row; torch.sort orders more than ``ORDER_LIMIT`` tokens."""
    _launch.refuse_float64("topk_select", scores=scores)
    b, n = scores.shape
    out = torch.empty((b, k), dtype=torch.int64, device=scores.device)
    if b == 0 or k == 0:
        return out
    lengths_b = 0 if lengths is None else lengths.stride(0)
    arguments = (scores, out, lengths, *scores.stride(), out.stride(0), lengths_b, n, k)
    shape = {"SORT": sort, "ORDERED": ordered(k, sort)}
    if n <= BLOCK_LIMIT:
        launch = _launch.parameters("topk_select", scores.device, n=n)
        _row_kernel[(b,)](*arguments, BLOCK=_launch.next_power_of_2(n), **shape, **launch)
    else:
        launch = _launch.parameters("topk_select_chunks", scores.device, n=n)
        _chunks_kernel[(b,)](*arguments, **shape, **launch)
    return finish(out, sort)


def _signature(dtype: str) -> dict[str, str]:
    return {"scores": dtype, "out": "*i64"} | dict.fromkeys(("scores_b", "scores_n", "out_b", "lengths_b", "n", "k"), "i32")


def _build(label: str, dtype: str, n: int, order: int) -> _launch.Build:
    chunks = n > BLOCK_LIMIT
    use = _launch.default_parameters("topk_select_chunks" if chunks else "topk_select", n=n)
    launch = _launch.options(use)
    use |= {"lengths": None, "SORT": order == 0, "ORDERED": order}
    if not chunks:
        use["BLOCK"] = _launch.next_power_of_2(n)
    return _launch.Build(label, _chunks_kernel if chunks else _row_kernel, _signature(dtype), use, **launch)


COMPILE = [
    _build("N=576 fp32", "*fp32", 576, 0),
    _build("N=576 fp16 k=64 in order of choice", "*fp16", 576, 64),
    _build("N=2880 fp32", "*fp32", 2880, 0),
    _build("N=8192 fp32", "*fp32", 8192, 0),
    _build("N=8192 fp32 k=2048 in order of choice", "*fp32", 8192, 2048),
    _build("N=20000 fp32", "*fp32", 20000, 0),
    _build("N=20000 fp32 k=2048 in order of choice", "*fp32", 20000, 2048),
]
