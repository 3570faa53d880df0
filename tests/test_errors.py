"""Every bad call says the op, the argument, what it got and what it takes, in the same words on every path."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from cases import EXAMPLES, backends_of, example, on_ops, replace
from torch._subclasses.fake_tensor import FakeTensorMode

import vtkernels as vt
from vtkernels._ops import ops
from vtkernels._schemas import OUT, SCHEMAS

B, N, T = 2, 5, 6  # T = N patches and one class token
FLOATS = "must be float32, float16, bfloat16 or float64, got"


@dataclass(frozen=True)
class Bad:
    """A call that is good but for ``change``."""

    op: str
    change: dict[str, Any] = field(hash=False)
    text: str
    error: type[Exception] = ValueError
    parsed: bool = True  # False: torch's own argument parser refuses it before the op sees it

    @property
    def arguments(self) -> dict[str, Any]:
        return {**example(self.op, batch=B, n=N, k=3), **self.change}

    @property
    def message(self) -> str:
        return f"vtkernels::{self.op}: {self.text}"


def zeros(*shape: int, dtype=torch.float32, device="cpu"):
    return torch.zeros(shape, dtype=dtype, device=device)


def floats(op, name, dims, sizes):
    """The first tensor of an op: rank and dtype."""
    yield Bad(op, {name: zeros(*sizes[1:])}, f"{name} must have shape [{dims}], got {list(sizes[1:])}")
    yield Bad(op, {name: zeros(*sizes, 1)}, f"{name} must have shape [{dims}], got {[*sizes, 1]}")
    yield Bad(op, {name: zeros(*sizes, dtype=torch.int64)}, f"{name} {FLOATS} int64", TypeError)
    yield Bad(op, {name: zeros(*sizes, dtype=torch.bool)}, f"{name} {FLOATS} bool", TypeError)
    yield Bad(op, {name: [1.0]}, f"{name} must be a tensor, got list", TypeError, parsed=False)
    yield Bad(op, {name: None}, f"{name} must be a tensor, got NoneType", TypeError, parsed=False)


def optional(op, name, first):
    """[B, N] beside the first tensor."""
    yield Bad(op, {name: zeros(N)}, f"{name} must have shape [B, N], got [5]")
    yield Bad(op, {name: zeros(B, N, 1)}, f"{name} must have shape [B, N], got [2, 5, 1]")
    yield Bad(op, {name: zeros(B, 4)}, f"{name} must have shape [B, N] = [2, 5], got [2, 4]")
    yield Bad(op, {name: zeros(1, N)}, f"{name} must have shape [B, N] = [2, 5], got [1, 5]")
    yield Bad(op, {name: zeros(B, N, dtype=torch.int32)}, f"{name} {FLOATS} int32", TypeError)
    yield Bad(op, {name: zeros(B, N, device="meta")}, f"{name} must be on cpu like {first}, got meta")


def budget(op, what, limit=N):
    yield Bad(op, {"k": -1}, f"k must be between 0 and {what} = {limit}, got -1")
    yield Bad(op, {"k": limit + 1}, f"k must be between 0 and {what} = {limit}, got {limit + 1}")
    yield Bad(op, {"k": 2.0}, "k must be an integer, got float", TypeError, parsed=False)
    yield Bad(op, {"k": "2"}, "k must be an integer, got str", TypeError, parsed=False)
    yield Bad(op, {"k": None}, "k must be an integer, got NoneType", TypeError, parsed=False)


def flag(op, name="sort"):
    yield Bad(op, {name: "yes"}, f"{name} must be a bool, got str", TypeError, parsed=False)
    yield Bad(op, {name: [True]}, f"{name} must be a bool, got list", TypeError, parsed=False)


def ragged(op, first, name="lengths"):
    longs = {"dtype": torch.int64}
    yield Bad(op, {name: zeros(B, 1, **longs)}, f"{name} must have shape [B], got [2, 1]")
    yield Bad(op, {name: zeros(B)}, f"{name} must be int32 or int64, got float32", TypeError)
    yield Bad(op, {name: zeros(B, dtype=torch.int16)}, f"{name} must be int32 or int64, got int16", TypeError)
    yield Bad(op, {name: zeros(3, **longs)}, f"{name} must have shape [B] = [2], got [3]")
    yield Bad(op, {name: zeros(B, device="meta", **longs)}, f"{name} must be on cpu like {first}, got meta")


def choice(op, name, options):
    takes = " or ".join(repr(option) for option in options)
    for wrong in ("none", "", options[0].upper()):
        yield Bad(op, {name: wrong}, f"{name} must be {takes}, got {wrong!r}")


def attention(op):
    if op == "attention_profile":
        yield from floats(op, "query", "B, H, T, d", (B, 3, T, 8))
    else:
        yield from floats(op, "query", "B, H, d", (B, 3, 8))
    yield from floats(op, "key", "B, H, T, d", (B, 3, T, 8))
    for wrong in ((1, 3, T, 8), (B, 2, T, 8), (B, 3, T, 7)):
        yield Bad(op, {"key": zeros(*wrong)}, f"key must have shape [B, H, T, d] = [2, 3, 6, 8], got {list(wrong)}")
    rows = (T,) if op == "attention_profile" else ()
    for h, d in ((0, 8), (3, 0)):
        none = {"query": zeros(B, h, *rows, d), "key": zeros(B, h, T, d)}
        yield Bad(op, none, f"query must have H >= 1 heads of d >= 1 channels, got H = {h}, d = {d}")
    half = zeros(B, 3, T, 8, dtype=torch.float16)
    yield Bad(op, {"key": half}, "key must be float32 like query, got float16", TypeError)
    yield Bad(op, {"key": zeros(B, 3, T, 8, device="meta")}, "key must be on cpu like query, got meta")
    for scale in (math.nan, math.inf, -math.inf):
        yield Bad(op, {"scale": scale}, f"scale must be a finite number, got {scale:g}")
    yield Bad(op, {"scale": "1"}, "scale must be a number, got str", TypeError, parsed=False)
    yield Bad(op, {"prefix": 1.0}, "prefix must be an integer, got float", TypeError, parsed=False)
    yield Bad(op, {"prefix": -1}, "prefix must be between 0 and T = 6, got -1")
    yield Bad(op, {"prefix": 7}, "prefix must be between 0 and T = 6, got 7")
    yield from ragged(op, "query")


def int64(op, name, first=None):
    """Labels and assignments: one int64 for each token. ``first``: the tensor it must go with, None for the first itself."""
    longs = {"dtype": torch.int64}
    yield Bad(op, {name: zeros(N, **longs)}, f"{name} must have shape [B, N], got [5]")
    yield Bad(op, {name: zeros(B, N, 1, **longs)}, f"{name} must have shape [B, N], got [2, 5, 1]")
    yield Bad(op, {name: zeros(B, N, dtype=torch.int32)}, f"{name} must be int64, got int32", TypeError)
    yield Bad(op, {name: zeros(B, N)}, f"{name} must be int64, got float32", TypeError)
    yield Bad(op, {name: [1]}, f"{name} must be a tensor, got list", TypeError, parsed=False)
    if first:
        yield Bad(op, {name: zeros(B, 4, **longs)}, f"{name} must have shape [B, N] = [2, 5], got [2, 4]")
        yield Bad(op, {name: zeros(1, N, **longs)}, f"{name} must have shape [B, N] = [2, 5], got [1, 5]")
        yield Bad(op, {name: zeros(B, N, device="meta", **longs)}, f"{name} must be on cpu like {first}, got meta")


def rows(op, tokens="tokens"):
    yield from floats(op, tokens, "B, N, D", (B, N, 9))
    longs = {"dtype": torch.int64}
    yield Bad(op, {"indices": zeros(3, **longs)}, "indices must have shape [B, K], got [3]")
    yield Bad(op, {"indices": zeros(B, 3, dtype=torch.int32)}, "indices must be int64, got int32", TypeError)
    yield Bad(op, {"indices": zeros(B, 3)}, "indices must be int64, got float32", TypeError)
    yield Bad(op, {"indices": zeros(1, 3, **longs)}, "indices must have shape [B, K] = [2, 3], got [1, 3]")
    yield Bad(op, {"indices": zeros(B, 3, device="meta", **longs)}, f"indices must be on cpu like {tokens}, got meta")


BAD = [
    *floats("scope_select", "features", "B, N, D", (B, N, 9)),
    *optional("scope_select", "saliency", "features"),
    *budget("scope_select", "N"),
    *(Bad("scope_select", {"alpha": a}, f"alpha must be a finite number >= 0, got {a:g}") for a in (-0.5, math.nan, math.inf)),
    Bad("scope_select", {"alpha": None}, "alpha must be a number, got NoneType", TypeError, parsed=False),
    *choice("scope_select", "combine", ("multiply", "add")),
    *ragged("scope_select", "features"),
    *floats("coverage_select", "similarity", "B, M, N", (B, N + 3, N)),
    *optional("coverage_select", "weight", "similarity"),
    *budget("coverage_select", "N"),
    *choice("coverage_select", "combine", ("multiply", "add")),
    *ragged("coverage_select", "similarity"),
    *floats("graph_propagate", "features", "B, N, D", (B, N, 9)),
    *(Bad("graph_propagate", {"threshold": x}, f"threshold must be in (0, 1], got {x:g}") for x in (0, -0.5, 1.01, math.nan)),
    Bad("graph_propagate", {"threshold": None}, "threshold must be a number, got NoneType", TypeError, parsed=False),
    *(
        Bad("graph_propagate", {"temperature": x}, f"temperature must be a finite number > 0, got {x:g}")
        for x in (0, -0.03, math.nan, math.inf)
    ),
    Bad("graph_propagate", {"temperature": "1"}, "temperature must be a number, got str", TypeError, parsed=False),
    Bad("graph_propagate", {"iterations": -1}, "iterations must be >= 0, got -1"),
    Bad("graph_propagate", {"iterations": 5.0}, "iterations must be an integer, got float", TypeError, parsed=False),
    *ragged("graph_propagate", "features"),
    *attention("attention_profile"),
    Bad("attention_profile", {"key": zeros(B, 3, 7, 8)}, "key must have shape [B, H, T, d] = [2, 3, 6, 8], got [2, 3, 7, 8]"),
    *attention("cls_attention"),
    *choice("cls_attention", "reduce", ("mean", "sum")),
    *floats("topk_select", "scores", "B, N", (B, N)),
    *budget("topk_select", "N"),
    *ragged("topk_select", "scores"),
    *attention("attention_topk"),
    *budget("attention_topk", "T - prefix"),
    Bad("attention_topk", {"prefix": 4}, "k must be between 0 and T - prefix = 2, got 3"),
    *floats("row_topk", "scores", "B, N", (B, N)),
    *(Bad("row_topk", {"width": width}, f"width must be >= 1, got {width}") for width in (0, -5)),
    *(Bad("row_topk", {"width": w}, f"N must be a multiple of width = {w}, got N = 5") for w in (2, 4, 6)),
    Bad("row_topk", {"width": 1.0}, "width must be an integer, got float", TypeError, parsed=False),
    *(Bad("row_topk", {"rows": rows}, f"rows must be between 0 and N / width = 5, got {rows}") for rows in (-1, 6)),
    Bad("row_topk", {"rows": 2, "width": 5}, "rows must be between 0 and N / width = 1, got 2"),
    Bad("row_topk", {"rows": "2"}, "rows must be an integer, got str", TypeError, parsed=False),
    *floats("crop_topk", "attention", "B, N", (B, N)),
    Bad("crop_topk", {"features": zeros(B, N)}, "features must have shape [B, N, D], got [2, 5]"),
    Bad("crop_topk", {"features": zeros(B, N, 9, dtype=torch.int32)}, f"features {FLOATS} int32", TypeError),
    Bad("crop_topk", {"features": zeros(B, 4, 9)}, "features must have shape [B, N, D] = [2, 5, 9], got [2, 4, 9]"),
    Bad("crop_topk", {"features": zeros(1, N, 9)}, "features must have shape [B, N, D] = [2, 5, 9], got [1, 5, 9]"),
    Bad("crop_topk", {"features": zeros(B, N, 9, device="meta")}, "features must be on cpu like attention, got meta"),
    *budget("crop_topk", "N"),
    *(Bad("crop_topk", {"crops": crops}, f"crops must be >= 1, got {crops}") for crops in (0, -16)),
    Bad("crop_topk", {"crops": 4.0}, "crops must be an integer, got float", TypeError, parsed=False),
    *(Bad("crop_topk", {"beta": x}, f"beta must be a finite number >= 0, got {x:g}") for x in (-0.09, math.nan, math.inf)),
    Bad("crop_topk", {"beta": "1"}, "beta must be a number, got str", TypeError, parsed=False),
    *(
        Bad("crop_topk", {"variant": x}, f"variant must be 'released' or 'full' or 'paper', got {x!r}")
        for x in ("", "FULL", "published")
    ),
    Bad("crop_topk", {"variant": "paper", "features": None}, "variant 'paper' needs features, got None"),
    *ragged("crop_topk", "attention"),
    *floats("token_clusters", "features", "B, N, D", (B, N, 9)),
    *(Bad("token_clusters", {"threshold": x}, f"threshold must be in (0, 1], got {x:g}") for x in (0, -0.5, 1.01, math.nan)),
    Bad("token_clusters", {"threshold": None}, "threshold must be a number, got NoneType", TypeError, parsed=False),
    *ragged("token_clusters", "features"),
    *floats("prompt_relevance", "vision", "B, N, D", (B, N, 9)),
    *floats("prompt_relevance", "text", "B, T, D", (B, 6, 9)),
    Bad("prompt_relevance", {"text": zeros(B, 6, 8)}, "text must have shape [B, T, D] = [2, 6, 9], got [2, 6, 8]"),
    Bad("prompt_relevance", {"text": zeros(1, 6, 9)}, "text must have shape [B, T, D] = [2, 6, 9], got [1, 6, 9]"),
    Bad(
        "prompt_relevance",
        {"text": zeros(B, 6, 9, dtype=torch.float16)},
        "text must be float32 like vision, got float16",
        TypeError,
    ),
    Bad("prompt_relevance", {"text": zeros(B, 6, 9, device="meta")}, "text must be on cpu like vision, got meta"),
    *ragged("prompt_relevance", "vision", "text_lengths"),
    *choice("prompt_relevance", "reduce", ("max", "mean")),
    *int64("cluster_topk", "labels"),
    *optional("cluster_topk", "relevance", "labels"),
    *budget("cluster_topk", "N"),
    *(Bad("cluster_topk", {"pool": x}, f"pool must be in [0, 1], got {x:g}") for x in (-0.1, 1.5, math.nan, math.inf)),
    Bad("cluster_topk", {"pool": None}, "pool must be a number, got NoneType", TypeError, parsed=False),
    *ragged("cluster_topk", "labels"),
    *rows("route_tokens", "features"),
    *int64("route_tokens", "labels", "features"),
    *ragged("route_tokens", "features"),
    *rows("merge_tokens"),
    *int64("merge_tokens", "assignment", "tokens"),
    *rows("gather_tokens"),
    *rows("compact_"),
    Bad("compact_", {"indices": zeros(B, 6, dtype=torch.int64)}, "indices must have at most N = 5 columns, got 6"),
    Bad("compact_", {"tokens": zeros(B, 1, 9).expand(B, N, 9)}, "tokens must not be an expanded view, it is written in place"),
    *(bad for op in EXAMPLES if "bool sort" in SCHEMAS[op] for bad in flag(op)),
    *flag("attention_profile", "softmax"),
    *(
        Bad(op, {name: 2**63}, f"{name} must fit in 64 bits, got {2**63}", parsed=False)
        for op, name in (("crop_topk", "crops"), ("graph_propagate", "iterations"), ("row_topk", "width"), ("topk_select", "k"))
    ),
    # of several wrong arguments, the first is named
    Bad(
        "scope_select",
        {"saliency": zeros(B, 4), "k": 9, "combine": "max"},
        "saliency must have shape [B, N] = [2, 5], got [2, 4]",
    ),
    Bad("scope_select", {"k": 9, "alpha": -1.0}, "k must be between 0 and N = 5, got 9"),
    Bad("scope_select", {"alpha": -1.0, "combine": "max"}, "alpha must be a finite number >= 0, got -1"),
    Bad("scope_select", {"combine": "max", "lengths": zeros(B)}, "combine must be 'multiply' or 'add', got 'max'"),
    Bad("graph_propagate", {"threshold": 2, "temperature": 0, "iterations": -1}, "threshold must be in (0, 1], got 2"),
    Bad("graph_propagate", {"temperature": 0, "iterations": -1}, "temperature must be a finite number > 0, got 0"),
    Bad("graph_propagate", {"iterations": -1, "lengths": zeros(B)}, "iterations must be >= 0, got -1"),
    Bad("row_topk", {"width": 0, "rows": 9}, "width must be >= 1, got 0"),
    Bad("row_topk", {"width": 3, "rows": 9}, "N must be a multiple of width = 3, got N = 5"),
    Bad("attention_topk", {"prefix": 9, "k": 9}, "prefix must be between 0 and T = 6, got 9"),
    Bad("attention_topk", {"lengths": zeros(B), "k": 9}, "lengths must be int32 or int64, got float32", TypeError),
    Bad("crop_topk", {"features": zeros(B, N), "k": 9}, "features must have shape [B, N, D], got [2, 5]"),
    Bad("crop_topk", {"k": 9, "crops": 0}, "k must be between 0 and N = 5, got 9"),
    Bad("crop_topk", {"crops": 0, "beta": -1}, "crops must be >= 1, got 0"),
    Bad("crop_topk", {"beta": -1, "variant": ""}, "beta must be a finite number >= 0, got -1"),
    Bad("crop_topk", {"variant": "", "lengths": zeros(B)}, "variant must be 'released' or 'full' or 'paper', got ''"),
    Bad(
        "crop_topk",
        {"variant": "paper", "features": None, "lengths": zeros(B)},
        "variant 'paper' needs features, got None",
    ),
    Bad("token_clusters", {"threshold": 2, "lengths": zeros(B)}, "threshold must be in (0, 1], got 2"),
    Bad(
        "prompt_relevance",
        {"text_lengths": zeros(B), "reduce": "sum"},
        "text_lengths must be int32 or int64, got float32",
        TypeError,
    ),
    Bad("cluster_topk", {"k": 9, "pool": 2}, "k must be between 0 and N = 5, got 9"),
    Bad("cluster_topk", {"pool": 2, "lengths": zeros(B)}, "pool must be in [0, 1], got 2"),
    Bad("route_tokens", {"labels": zeros(B, N), "lengths": zeros(B)}, "labels must be int64, got float32", TypeError),
    Bad("cls_attention", {"scale": math.nan, "reduce": "max"}, "scale must be a finite number, got nan"),
]


def name(value) -> str | None:
    if isinstance(value, Bad):
        return f"{value.op}-{'+'.join(value.change)}-{value.text.rsplit(' ', 1)[-1] or 'empty'}"
    return None


BAD_ON_BACKENDS = [(bad, backend) for bad in BAD for backend in backends_of(bad.op)]
each_bad = pytest.mark.parametrize("bad", [bad for bad in BAD if bad.parsed], ids=name)


def test_table_covers_every_op():
    assert {bad.op for bad in BAD} == set(SCHEMAS)


@pytest.mark.parametrize(("bad", "backend"), BAD_ON_BACKENDS, indirect=["backend"], ids=name)
def test_wrapper_raises_the_right_type_and_words(bad, backend):
    with pytest.raises(bad.error) as caught:
        getattr(vt, bad.op)(**bad.arguments)
    assert str(caught.value) == bad.message


@pytest.mark.parametrize(
    ("bad", "backend"), [pair for pair in BAD_ON_BACKENDS if pair[0].parsed], indirect=["backend"], ids=name
)
def test_direct_call_says_the_same(bad, backend):
    with pytest.raises((bad.error, RuntimeError), match=re.escape(bad.message)):
        getattr(ops, bad.op).default(**bad.arguments)


@each_bad
def test_shape_function_says_the_same(bad):
    """Under tracing a bad call fails while the graph is made, not when it runs."""
    with FakeTensorMode() as mode, pytest.raises((bad.error, RuntimeError), match=re.escape(bad.message)):
        getattr(ops, bad.op).default(**replace(bad.arguments, mode.from_tensor))


def without_data(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


@pytest.mark.parametrize("bad", [bad for bad in BAD if bad.parsed and "got meta" not in bad.text], ids=name)
def test_meta_device_says_the_same(bad):
    with pytest.raises(bad.error, match=re.escape(bad.message)):
        getattr(vt, bad.op)(**replace(bad.arguments, without_data))


# What only the data shows: looked at on the CPU, and not while tracing.
BAD_DATA = [
    Bad("gather_tokens", {"indices": torch.tensor([[0, 1], [5, 2]])}, "indices must be -1 or in [0, N) with N = 5, got 5"),
    Bad("gather_tokens", {"indices": torch.tensor([[0, 1], [-2, 2]])}, "indices must be -1 or in [0, N) with N = 5, got -2"),
    Bad("compact_", {"indices": torch.tensor([[0, 1], [2, 5]])}, "indices must be -1 or in [0, N) with N = 5, got 5"),
    Bad("route_tokens", {"indices": torch.tensor([[0, 1], [2, 5]])}, "indices must be -1 or in [0, N) with N = 5, got 5"),
    Bad("route_tokens", {"indices": torch.tensor([[0, -9], [2, 1]])}, "indices must be -1 or in [0, N) with N = 5, got -9"),
    Bad(
        "merge_tokens",
        {"indices": torch.tensor([[0, 1], [2, 5]]), "assignment": torch.full((B, N), 9)},
        "indices must be -1 or in [0, N) with N = 5, got 5",
    ),
    *(
        Bad(
            "merge_tokens",
            {"assignment": torch.full((B, N), slot)},
            f"assignment must be -1 or in [0, K) with K = 3, got {slot}",
        )
        for slot in (3, -2, 2**40)
    ),
    Bad(
        "compact_",
        {"indices": torch.tensor([[0, 1], [2, 1]])},
        "indices must be ascending and distinct, with -1 only at the end",
    ),
]


@pytest.mark.parametrize(
    ("bad", "backend"), [(bad, b) for bad in BAD_DATA for b in backends_of(bad.op)], indirect=["backend"], ids=name
)
def test_bad_data_is_named_on_the_cpu_alone(bad, backend):
    with pytest.raises(ValueError) as caught:
        getattr(vt, bad.op)(**bad.arguments)
    assert str(caught.value) == bad.message
    with pytest.raises((ValueError, RuntimeError), match=re.escape(bad.message)):
        getattr(ops, bad.op).default(**bad.arguments)
    getattr(vt, bad.op)(**replace(bad.arguments, without_data))


def bad_outs(op):
    """(change of a good buffer, what the message says it got)."""
    shape = [B, N] if op in ("cls_attention", "token_clusters", "prompt_relevance", "route_tokens") else [B, 3]
    dtype = str(OUT[op]).removeprefix("torch.")
    takes = f"vtkernels::{op}: out must be {dtype} {shape} on cpu, got"
    yield "dtype", lambda x: x.to(torch.float64), f"{takes} float64 {shape} on cpu"
    yield "narrow dtype", lambda x: x.to(torch.int32), f"{takes} int32 {shape} on cpu"
    yield "columns", lambda x: x[:, 1:], f"{takes} {dtype} [2, {shape[1] - 1}] on cpu"
    yield "rank", lambda x: x[None], f"{takes} {dtype} {[1, *shape]} on cpu"
    yield "empty", lambda x: x[:0, :0], f"{takes} {dtype} [0, 0] on cpu"
    yield "device", lambda x: x.to("meta"), f"{takes} {dtype} {shape} on meta"


BAD_OUT = [
    pytest.param(op, change, text, backend, id=f"{op}-{what}-{backend}")
    for op in EXAMPLES
    if op in OUT
    for what, change, text in bad_outs(op)
    for backend in backends_of(op)
]


@pytest.mark.parametrize(("op", "change", "text", "backend"), BAD_OUT, indirect=["backend"])
def test_out_that_does_not_fit(op, change, text, backend):
    arguments = example(op, batch=B, n=N, k=3)
    out = change(getattr(vt, op)(**arguments))
    before = out.clone()
    with pytest.raises(ValueError) as caught:
        getattr(vt, op)(**arguments, out=out)
    assert str(caught.value) == text
    with pytest.raises((ValueError, RuntimeError), match=re.escape(text)):
        getattr(ops, op).out(**arguments, out=out)
    with FakeTensorMode() as mode, pytest.raises((ValueError, RuntimeError), match=re.escape(text)):
        getattr(ops, op).out(**replace(arguments, mode.from_tensor), out=mode.from_tensor(out))
    assert out.shape == before.shape
    assert out.is_meta or torch.equal(out, before)


@on_ops(*OUT)
def test_out_in_the_memory_of_an_input(op, backend):
    """Refused where they overlap, by the functional result where one begins behind the other."""
    (name, x), *_ = example(op, batch=B, n=N, k=3).items()
    want = getattr(vt, op)(**example(op, batch=B, n=N, k=3))
    memory = torch.zeros(8192, dtype=torch.uint8)
    arguments = {**example(op, batch=B, n=N, k=3), name: memory.view(x.dtype)[: x.numel()].view(x.shape).copy_(x)}
    apart = memory[4096:].view(OUT[op])[: want.numel()].view(want.shape)
    assert torch.equal(getattr(vt, op)(**arguments, out=apart), want)
    overlapping = memory[4 * x.element_size() :].view(OUT[op])[: want.numel()].view(want.shape)
    text = f"vtkernels::{op}: out must not overlap {name} in memory"
    before = memory.clone()
    with pytest.raises(ValueError) as caught:
        getattr(vt, op)(**arguments, out=overlapping)
    assert str(caught.value) == text
    with pytest.raises((ValueError, RuntimeError), match=re.escape(text)):
        getattr(ops, op).out(**arguments, out=overlapping)
    assert torch.equal(memory, before)


@pytest.mark.parametrize("op", [op for op in EXAMPLES if op in OUT])
def test_out_that_is_no_tensor(op):
    for wrong in ("x", [1], 5):
        with pytest.raises(TypeError, match=f"{op}: out must be a tensor, got {type(wrong).__name__}"):
            getattr(vt, op)(**example(op, batch=B, n=N, k=3), out=wrong)


@on_ops("compact_", *OUT)
def test_negated_view_is_not_written(op, backend):
    """torch keeps the sign of some views, ``x.conj().imag`` among them, apart from their memory."""
    arguments, name = example(op, batch=B, n=N, k=3), "tokens" if op == "compact_" else "out"
    arguments[name] = torch._neg_view(arguments["tokens"] if op == "compact_" else getattr(vt, op)(**arguments))
    with pytest.raises(ValueError, match=f"{op}: {name} must not be a negated view, it is written in place"):
        getattr(vt, op)(**arguments)


@on_ops(*OUT)
def test_bad_argument_is_named_before_a_bad_out(op, backend):
    wrong = {"cls_attention": {"prefix": 7}, "row_topk": {"rows": 9}, "token_clusters": {"threshold": 2}}
    wrong |= {"prompt_relevance": {"reduce": "sum"}, "route_tokens": {"labels": zeros(B, 4, dtype=torch.int64)}}
    change = wrong.get(op, {"k": 9})
    with pytest.raises(ValueError, match=f"{op}: {next(iter(change))} must"):
        getattr(vt, op)(**{**example(op, batch=B, n=N, k=3), **change}, out=zeros(1))
