"""Argument checks of every op, run before any work by the reference, by the shape functions and by the typed wrappers.

The native library checks the same conditions in the same order with the same words (``csrc/torch/checks.h``);
``tests/test_errors.py`` compares the two. Each function takes exactly the arguments of the op of the same name and
reads no tensor data, so that it also runs on fake tensors and on any device; what can only be seen in the data is in ``DATA``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from vtkernels._ops import qualified

_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INTS = (torch.int32, torch.int64)


def scope_select(
    features: Tensor,
    saliency: Tensor | None,
    k: int,
    *,
    alpha: float = 1.0,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> None:
    op = qualified("scope_select")
    _tensor(op, "features", features, "B, N, D", floats=True)
    b, n, _ = features.shape
    if saliency is not None:
        _tensor(op, "saliency", saliency, "B, N", floats=True, shape=(b, n), like=("features", features))
    _budget(op, k, "N", n)
    _number(op, "alpha", alpha, "a number")
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"{op}: alpha must be a finite number >= 0, got {alpha:g}")
    _option(op, "combine", combine, ("multiply", "add"))
    _lengths(op, lengths, b, ("features", features))
    _flag(op, "sort", sort)


def coverage_select(
    similarity: Tensor,
    weight: Tensor | None,
    k: int,
    *,
    combine: str = "multiply",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> None:
    op = qualified("coverage_select")
    _tensor(op, "similarity", similarity, "B, M, N", floats=True)
    b, _, n = similarity.shape
    if weight is not None:
        _tensor(op, "weight", weight, "B, N", floats=True, shape=(b, n), like=("similarity", similarity))
    _budget(op, k, "N", n)
    _option(op, "combine", combine, ("multiply", "add"))
    _lengths(op, lengths, b, ("similarity", similarity))
    _flag(op, "sort", sort)


def graph_propagate(
    features: Tensor, *, threshold: float = 0.5, temperature: float = 0.03, iterations: int = 5, lengths: Tensor | None = None
) -> None:
    op = qualified("graph_propagate")
    _tensor(op, "features", features, "B, N, D", floats=True)
    _number(op, "threshold", threshold, "a number")
    if not 0 < threshold <= 1:
        raise ValueError(f"{op}: threshold must be in (0, 1], got {threshold:g}")
    _number(op, "temperature", temperature, "a number")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{op}: temperature must be a finite number > 0, got {temperature:g}")
    _number(op, "iterations", iterations, "an integer")
    if not iterations >= 0:
        raise ValueError(f"{op}: iterations must be >= 0, got {iterations}")
    _lengths(op, lengths, features.shape[0], ("features", features))


def cls_attention(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    reduce: str = "mean",
    lengths: Tensor | None = None,
) -> None:
    op = qualified("cls_attention")
    _attention(op, query, key, scale, prefix, lengths)
    _option(op, "reduce", reduce, ("mean", "sum"))


def attention_profile(
    query: Tensor,
    key: Tensor,
    *,
    scale: float | None = None,
    prefix: int = 1,
    softmax: bool = True,
    lengths: Tensor | None = None,
) -> None:
    op = qualified("attention_profile")
    _attention(op, query, key, scale, prefix, lengths, dims="B, H, T, d")
    _flag(op, "softmax", softmax)


def topk_select(scores: Tensor, k: int, *, lengths: Tensor | None = None, sort: bool = True) -> None:
    op = qualified("topk_select")
    _tensor(op, "scores", scores, "B, N", floats=True)
    _budget(op, k, "N", scores.shape[1])
    _lengths(op, lengths, scores.shape[0], ("scores", scores))
    _flag(op, "sort", sort)


def attention_topk(
    query: Tensor,
    key: Tensor,
    k: int,
    *,
    scale: float | None = None,
    prefix: int = 1,
    lengths: Tensor | None = None,
    sort: bool = True,
) -> None:
    op = qualified("attention_topk")
    _attention(op, query, key, scale, prefix, lengths)
    _budget(op, k, "T - prefix", key.shape[2] - prefix)
    _flag(op, "sort", sort)


def row_topk(scores: Tensor, rows: int, *, width: int, sort: bool = True) -> None:
    op = qualified("row_topk")
    _tensor(op, "scores", scores, "B, N", floats=True)
    n = scores.shape[1]
    _number(op, "width", width, "an integer")
    if not width >= 1:
        raise ValueError(f"{op}: width must be >= 1, got {width}")
    if n % width:
        raise ValueError(f"{op}: N must be a multiple of width = {width}, got N = {n}")
    _number(op, "rows", rows, "an integer")
    if not 0 <= rows <= n // width:
        raise ValueError(f"{op}: rows must be between 0 and N / width = {n // width}, got {rows}")
    _flag(op, "sort", sort)


def crop_topk(
    attention: Tensor,
    features: Tensor | None,
    k: int,
    *,
    crops: int = 16,
    beta: float = 0.09,
    variant: str = "released",
    lengths: Tensor | None = None,
    sort: bool = True,
) -> None:
    op = qualified("crop_topk")
    _tensor(op, "attention", attention, "B, N", floats=True)
    b, n = attention.shape
    if features is not None:
        _tensor(op, "features", features, "B, N, D", floats=True)
        _tensor(op, "features", features, "B, N, D", shape=(b, n, features.shape[2]), like=("attention", attention))
    _budget(op, k, "N", n)
    _number(op, "crops", crops, "an integer")
    if not crops >= 1:
        raise ValueError(f"{op}: crops must be >= 1, got {crops}")
    _number(op, "beta", beta, "a number")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"{op}: beta must be a finite number >= 0, got {beta:g}")
    _option(op, "variant", variant, ("released", "full", "paper"))
    if variant == "paper" and features is None:
        raise ValueError(f"{op}: variant 'paper' needs features, got None")
    _lengths(op, lengths, b, ("attention", attention))
    _flag(op, "sort", sort)


def token_clusters(features: Tensor, *, threshold: float, lengths: Tensor | None = None) -> None:
    op = qualified("token_clusters")
    _tensor(op, "features", features, "B, N, D", floats=True)
    _number(op, "threshold", threshold, "a number")
    if not 0 < threshold <= 1:
        raise ValueError(f"{op}: threshold must be in (0, 1], got {threshold:g}")
    _lengths(op, lengths, features.shape[0], ("features", features))


def prompt_relevance(vision: Tensor, text: Tensor, *, text_lengths: Tensor | None = None, reduce: str = "max") -> None:
    op = qualified("prompt_relevance")
    _tensor(op, "vision", vision, "B, N, D", floats=True)
    _tensor(op, "text", text, "B, T, D", floats=True)
    b, _, d = vision.shape
    _tensor(op, "text", text, "B, T, D", shape=(b, text.shape[1], d))
    if text.dtype != vision.dtype:
        raise TypeError(f"{op}: text must be {_name(vision.dtype)} like vision, got {_name(text.dtype)}")
    _tensor(op, "text", text, "B, T, D", like=("vision", vision))
    _lengths(op, text_lengths, b, ("vision", vision), name="text_lengths")
    _option(op, "reduce", reduce, ("max", "mean"))


def cluster_topk(
    labels: Tensor, relevance: Tensor, k: int, *, pool: float = 0.5, lengths: Tensor | None = None, sort: bool = True
) -> None:
    op = qualified("cluster_topk")
    _int64(op, "labels", labels, "B, N")
    b, n = labels.shape
    _tensor(op, "relevance", relevance, "B, N", floats=True, shape=(b, n), like=("labels", labels))
    _budget(op, k, "N", n)
    _number(op, "pool", pool, "a number")
    if not 0 <= pool <= 1:
        raise ValueError(f"{op}: pool must be in [0, 1], got {pool:g}")
    _lengths(op, lengths, b, ("labels", labels))
    _flag(op, "sort", sort)


def route_tokens(features: Tensor, indices: Tensor, labels: Tensor | None = None, *, lengths: Tensor | None = None) -> None:
    op = qualified("route_tokens")
    _tensor(op, "features", features, "B, N, D", floats=True)
    b, n, _ = features.shape
    _indices(op, indices, features, like="features")
    if labels is not None:
        _int64(op, "labels", labels, "B, N", shape=(b, n), like=("features", features))
    _lengths(op, lengths, b, ("features", features))


def merge_tokens(tokens: Tensor, indices: Tensor, assignment: Tensor) -> None:
    op = qualified("merge_tokens")
    _tensor(op, "tokens", tokens, "B, N, D", floats=True)
    _indices(op, indices, tokens)
    _int64(op, "assignment", assignment, "B, N", shape=tokens.shape[:2], like=("tokens", tokens))


def gather_tokens(tokens: Tensor, indices: Tensor) -> None:
    op = qualified("gather_tokens")
    _tensor(op, "tokens", tokens, "B, N, D", floats=True)
    _indices(op, indices, tokens)


def compact_(tokens: Tensor, indices: Tensor) -> None:
    op = qualified("compact_")
    _tensor(op, "tokens", tokens, "B, N, D", floats=True)
    _indices(op, indices, tokens)
    n, k = tokens.shape[1], indices.shape[1]
    if k > n:
        raise ValueError(f"{op}: indices must have at most N = {n} columns, got {k}")
    _writable(op, "tokens", tokens)


def _in_range(op: str, tokens: Tensor, indices: Tensor) -> None:
    n = tokens.shape[1]
    wrong = indices[(indices < -1) | (indices >= n)]
    if wrong.numel():
        raise ValueError(f"{op}: indices must be -1 or in [0, N) with N = {n}, got {wrong[0].item()}")


def _gather_tokens_data(tokens: Tensor, indices: Tensor) -> None:
    _in_range(qualified("gather_tokens"), tokens, indices)


def _compact_data(tokens: Tensor, indices: Tensor) -> None:
    op = qualified("compact_")
    _in_range(op, tokens, indices)
    key = indices.masked_fill(indices == -1, torch.iinfo(torch.int64).max)
    if not bool(((key[:, 1:] > key[:, :-1]) | (indices[:, 1:] == -1)).all()):
        raise ValueError(f"{op}: indices must be ascending and distinct, with -1 only at the end")


def _route_tokens_data(
    features: Tensor, indices: Tensor, labels: Tensor | None = None, *, lengths: Tensor | None = None
) -> None:
    _in_range(qualified("route_tokens"), features, indices)


def _merge_tokens_data(tokens: Tensor, indices: Tensor, assignment: Tensor) -> None:
    op = qualified("merge_tokens")
    _in_range(op, tokens, indices)
    k = indices.shape[1]
    wrong = assignment[(assignment < -1) | (assignment >= k)]
    if wrong.numel():
        raise ValueError(f"{op}: assignment must be -1 or in [0, K) with K = {k}, got {wrong[0].item()}")


# Checked on the CPU alone, where a look at the data costs no synchronisation.
DATA: dict[str, Callable[..., None]] = {
    "gather_tokens": _gather_tokens_data,
    "compact_": _compact_data,
    "route_tokens": _route_tokens_data,
    "merge_tokens": _merge_tokens_data,
}


def out(op: str, out: Tensor, dtype: torch.dtype, shape: Sequence[int], like: Tensor) -> None:
    """The caller's buffer of an ``.out`` overload: never resized, cast or moved."""
    op = qualified(op)
    if not isinstance(out, Tensor):
        raise TypeError(f"{op}: out must be a tensor, got {type(out).__name__}")
    shape = tuple(shape)
    if out.dtype != dtype or tuple(out.shape) != shape or out.device != like.device:
        raise ValueError(
            f"{op}: out must be {_name(dtype)} {_list(shape)} on {like.device}, "
            f"got {_name(out.dtype)} {_list(out.shape)} on {out.device}"
        )
    _writable(op, "out", out)


def apart(op: str, out: Tensor, *args: object, **kwargs: object) -> None:
    """No input of the op lies in the memory of ``out``: a kernel may write an element before another thread has read it."""
    for name, x in inspect.signature(globals()[op]).bind(*args, **kwargs).arguments.items():
        if isinstance(x, Tensor) and _overlap(out, x):
            raise ValueError(f"{qualified(op)}: out must not overlap {name} in memory")


def _overlap(x: Tensor, y: Tensor) -> bool:
    if 0 in (x.numel(), y.numel()) or any(t.is_meta or isinstance(t, FakeTensor) for t in (x, y)):
        return False
    ends = [sum((t.shape[dim] - 1) * t.stride(dim) for dim in range(t.dim())) for t in (x, y)]
    first, second = (t.data_ptr() for t in (x, y))
    return first < second + (ends[1] + 1) * y.element_size() and second < first + (ends[0] + 1) * x.element_size()


def _tensor(
    op: str,
    name: str,
    x: object,
    dims: str,
    *,
    floats: bool = False,
    shape: Sequence[int] | None = None,
    like: tuple[str, Tensor] | None = None,
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
    if x.dim() != dims.count(",") + 1:
        raise ValueError(f"{op}: {name} must have shape [{dims}], got {_list(x.shape)}")
    if floats and x.dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be float32, float16, bfloat16 or float64, got {_name(x.dtype)}")
    if shape is not None and tuple(x.shape) != tuple(shape):
        raise ValueError(f"{op}: {name} must have shape [{dims}] = {_list(shape)}, got {_list(x.shape)}")
    if like is not None and x.device != like[1].device:
        raise ValueError(f"{op}: {name} must be on {like[1].device} like {like[0]}, got {x.device}")


def _writable(op: str, name: str, x: Tensor) -> None:
    if x.numel() and any(x.stride(dim) == 0 and x.shape[dim] > 1 for dim in range(x.dim())):
        raise ValueError(f"{op}: {name} must not be an expanded view, it is written in place")
    if x.is_neg():
        raise ValueError(f"{op}: {name} must not be a negated view, it is written in place; pass {name}.resolve_neg()")


def _attention(
    op: str, query: Tensor, key: Tensor, scale: float | None, prefix: int, lengths: Tensor | None, *, dims: str = "B, H, d"
) -> None:
    _tensor(op, "query", query, dims, floats=True)
    _tensor(op, "key", key, "B, H, T, d", floats=True)
    b, h, *rows, d = query.shape
    t = rows[0] if rows else key.shape[2]
    if tuple(key.shape) != (b, h, t, d):
        raise ValueError(f"{op}: key must have shape [B, H, T, d] = {_list((b, h, t, d))}, got {_list(key.shape)}")
    if h < 1 or d < 1:
        raise ValueError(f"{op}: query must have H >= 1 heads of d >= 1 channels, got H = {h}, d = {d}")
    if key.dtype != query.dtype:
        raise TypeError(f"{op}: key must be {_name(query.dtype)} like query, got {_name(key.dtype)}")
    if key.device != query.device:
        raise ValueError(f"{op}: key must be on {query.device} like query, got {key.device}")
    if scale is not None:
        _number(op, "scale", scale, "a number")
        if not math.isfinite(scale):
            raise ValueError(f"{op}: scale must be a finite number, got {scale:g}")
    _number(op, "prefix", prefix, "an integer")
    if not 0 <= prefix <= t:
        raise ValueError(f"{op}: prefix must be between 0 and T = {t}, got {prefix}")
    _lengths(op, lengths, b, ("query", query))


def _number(op: str, name: str, x: object, takes: str) -> None:
    """Fails only for what torch's own argument parser refuses, in words that are no use to the caller."""
    if isinstance(x, bool) or not (hasattr(x, "__index__") or (takes == "a number" and hasattr(x, "__float__"))):
        raise TypeError(f"{op}: {name} must be {takes}, got {type(x).__name__}")
    if takes == "an integer" and isinstance(x, int) and not -(2**63) <= x < 2**63:
        raise ValueError(f"{op}: {name} must fit in 64 bits, got {x}")


def _flag(op: str, name: str, x: object) -> None:
    """As torch's argument parser: whatever has a truth value of its own, None and numbers among it, and no container."""
    if not hasattr(x, "__bool__"):
        raise TypeError(f"{op}: {name} must be a bool, got {type(x).__name__}")


def _budget(op: str, k: int, what: str, n: int) -> None:
    _number(op, "k", k, "an integer")
    if not 0 <= k <= n:
        raise ValueError(f"{op}: k must be between 0 and {what} = {n}, got {k}")


def _lengths(op: str, lengths: Tensor | None, b: int, like: tuple[str, Tensor], *, name: str = "lengths") -> None:
    if lengths is None:
        return
    _tensor(op, name, lengths, "B")
    if lengths.dtype not in _INTS:
        raise TypeError(f"{op}: {name} must be int32 or int64, got {_name(lengths.dtype)}")
    _tensor(op, name, lengths, "B", shape=(b,), like=like)


def _int64(
    op: str, name: str, x: Tensor, dims: str, *, shape: Sequence[int] | None = None, like: tuple[str, Tensor] | None = None
) -> None:
    _tensor(op, name, x, dims)
    if x.dtype != torch.int64:
        raise TypeError(f"{op}: {name} must be int64, got {_name(x.dtype)}")
    _tensor(op, name, x, dims, shape=shape, like=like)


def _indices(op: str, indices: Tensor, tokens: Tensor, *, like: str = "tokens") -> None:
    _int64(op, "indices", indices, "B, K")
    _tensor(op, "indices", indices, "B, K", shape=(tokens.shape[0], indices.shape[1]), like=(like, tokens))


def _option(op: str, name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{op}: {name} must be {' or '.join(repr(c) for c in choices)}, got {value!r}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _list(shape: Sequence[int]) -> str:
    return "[" + ", ".join(str(s) for s in shape) + "]"
