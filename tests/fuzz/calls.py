"""One random call of an op: good arguments in every size, dtype, layout and kind of value, or one argument made bad.

A call is a function of (seed, index) alone, so that any call of a run can be drawn again by itself.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from cases import DTYPES, arrange
from torch import Tensor

from vtkernels._schemas import OUT, SCHEMAS, SHAPES

LAYOUTS = ("contiguous", "transposed", "batch_inside", "sliced", "misaligned", "expanded", "requires_grad", "negated")
INT64 = torch.iinfo(torch.int64)


@dataclass
class Call:
    op: str
    arguments: dict[str, Any]
    out: Tensor | None = None
    broken: str | None = None  # the argument that was made bad
    mode: str = "none"  # or "no_grad", "inference_mode"
    layouts: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        shown = {**self.arguments, **({} if self.out is None else {"out": self.out})}
        lines = [f"  {name} = {_shown(value)}  {self.layouts.get(name, '')}".rstrip() for name, value in shown.items()]
        return "\n".join([f"{self.op}, broken: {self.broken}, {self.mode}", *lines])


def _shown(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} stride {value.stride()} on {value.device}"


class Source:
    """Random choices of one call."""

    def __init__(self, seed: int, index: int):
        self.random = random.Random(f"{seed} {index}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(63))
        self.dtype = self.random.choices(DTYPES, (5, 2, 2, 2))[0]

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def pick(self, *options: Any) -> Any:
        return self.random.choice(options)

    def size(self, most: int = 200) -> int:
        """Mostly small: empty, one, odd, around the width of a vector and of a panel; now and then large."""
        kind = self.random.random()
        if kind < 0.06:
            return 0
        if kind < 0.14:
            return 1
        if kind < 0.80:
            return self.random.randint(2, min(20, most))
        if kind < 0.92:
            return min(most, self.pick(15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65))
        return self.random.randint(1, most)

    def batch(self) -> int:
        return self.random.choices((0, 1, 2, 3, 5, 9), (1, 8, 5, 4, 2, 1))[0]

    def budget(self, n: int) -> int:
        return self.pick(0, n, self.random.randint(0, n), self.random.randint(0, n), min(n, 1))

    # ------------------------------------------------------------------------------------------------ tensors

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        kind = self.random.choices(tuple(_VALUES), (6, 3, 1, 2, 1, 1, 1, 1))[0]
        x = _VALUES[kind](self, torch.randn(shape, generator=self.generator, dtype=torch.float64), dtype)
        if self.chance(0.15) and x.numel():
            hit = torch.rand(shape, generator=self.generator) < self.pick(0.02, 0.3)
            x = x.masked_fill(hit, self.pick(math.nan, math.inf, -math.inf, 0.0, -0.0))
        return x.to(dtype)

    def uniform(self, shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64)

    def another_dtype(self) -> torch.dtype:
        return self.pick(*DTYPES) if self.chance(0.2) else self.dtype

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, max(high, low + 1), shape, generator=self.generator)

    def lengths(self, b: int, n: int) -> Tensor | None:
        if self.chance(0.5):
            return None
        dtype = self.pick(torch.int32, torch.int64)
        limits = torch.iinfo(dtype)
        kinds = (limits.min, -1, 0, 1, n - 1, n, n + 1, limits.max)
        row = [self.pick(*kinds) if self.chance(0.4) else self.random.randint(0, n) for _ in range(b)]
        return torch.tensor(row, dtype=dtype)

    def kept(self, b: int, n: int, k: int, *, compacted: bool = False) -> Tensor:
        """Indices of kept tokens: distinct, some -1; ascending with -1 at the end for ``compact_``."""
        indices = torch.full((b, k), -1, dtype=torch.int64)
        for row in indices:
            found = torch.randperm(n, generator=self.generator)[: self.budget(min(k, n))]
            row[: len(found)] = found.sort().values if compacted else found
            if not compacted and k:
                row.copy_(row[torch.randperm(k, generator=self.generator)].clone())
        return indices


def _copies(source: Source, x: Tensor, dtype: torch.dtype) -> Tensor:
    """A few rows, each many times over."""
    if x.dim() < 2 or x.shape[-2] == 0:
        return x.round()
    return x[..., source.integers(0, 1 + x.shape[-2] // 3, x.shape[-2]), :]


_VALUES: dict[str, Callable[[Source, Tensor, torch.dtype], Tensor]] = {
    "normal": lambda source, x, dtype: x,
    "ties": lambda source, x, dtype: (2 * x).round() / 2,
    "zero": lambda source, x, dtype: x * 0,
    "copies": _copies,
    "constant": lambda source, x, dtype: torch.full_like(x, source.random.gauss(0, 1)),
    "huge": lambda source, x, dtype: x.clamp(-1, 1) * torch.finfo(dtype).max * source.pick(1.0, 1e-3),
    "subnormal": lambda source, x, dtype: x * torch.finfo(dtype).smallest_normal * source.pick(1.0, 0.01),
    "wide": lambda source, x, dtype: x * 10 ** (source.pick(2.0, 12.0, 25.0) * source.uniform(x.shape)),
}


# ------------------------------------------------------------------------------------------------ good arguments


def _attention(source: Source, rows: bool) -> dict[str, Any]:
    b, h, t, d = source.batch(), source.pick(1, 2, 3, 5), source.size(150), max(1, source.size(70))
    prefix = source.pick(0, 1, 1, 1, t, source.random.randint(0, t))
    return {
        "query": source.floats(b, h, t, d) if rows else source.floats(b, h, d),
        "key": source.floats(b, h, t, d),
        "scale": source.pick(None, None, 1.0, 0.05, 0.0, -1.0, 1e30),
        "prefix": min(prefix, t),
        "lengths": source.lengths(b, t),
    }


def _scope_select(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {
        "features": source.floats(b, n, source.size(140)),
        "saliency": source.pick(None, source.floats(b, n, dtype=source.another_dtype())),
        "k": source.budget(n),
        "alpha": source.pick(1.0, 1.0, 0.0, 0.5, 2.0, 30.0),
        "combine": source.pick("multiply", "add"),
        "lengths": source.lengths(b, n),
        "sort": source.pick(True, False),
    }


def _coverage_select(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size(100)
    return {
        "similarity": source.floats(b, source.size(140), n),
        "weight": source.pick(None, source.floats(b, n, dtype=source.another_dtype())),
        "k": source.budget(n),
        "combine": source.pick("multiply", "add"),
        "lengths": source.lengths(b, n),
        "sort": source.pick(True, False),
    }


def _graph_propagate(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {
        "features": source.floats(b, n, source.size(140)),
        "threshold": source.pick(0.5, 0.5, 1.0, 0.01, 1e-320, source.random.uniform(0.01, 1)),
        "temperature": source.pick(0.03, 0.03, 1.0, 0.3, 1e-320, 1e300),
        "iterations": source.pick(0, 1, 2, 5, 8),
        "lengths": source.lengths(b, n),
    }


def _topk_select(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {
        "scores": source.floats(b, n),
        "k": source.budget(n),
        "lengths": source.lengths(b, n),
        "sort": source.pick(True, False),
    }


def _attention_topk(source: Source) -> dict[str, Any]:
    arguments = _attention(source, rows=False)
    k = source.budget(arguments["key"].shape[2] - arguments["prefix"])
    return {**arguments, "k": k, "sort": source.pick(True, False)}


def _row_topk(source: Source) -> dict[str, Any]:
    width, rows = max(1, source.size(24)), source.size(24)
    return {
        "scores": source.floats(source.batch(), rows * width),
        "rows": source.budget(rows),
        "width": width,
        "sort": source.pick(True, False),
    }


def _crop_topk(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    variant = source.pick("released", "full", "paper")
    features = source.floats(b, n, source.size(40), dtype=source.another_dtype())
    return {
        "attention": source.floats(b, n).abs() if source.chance(0.8) else source.floats(b, n),
        "features": features if variant == "paper" else source.pick(None, features),
        "k": source.budget(n),
        "crops": source.pick(16, 1, 2, 3, 7, 300, INT64.max),
        "beta": source.pick(0.09, 0.0, 1.0, 1e30),
        "variant": variant,
        "lengths": source.lengths(b, n),
        "sort": source.pick(True, False),
    }


def _token_clusters(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {
        "features": source.floats(b, n, source.size(140)),
        "threshold": source.pick(0.7, 0.3, 1.0, 1e-320, source.random.uniform(0.01, 1)),
        "lengths": source.lengths(b, n),
    }


def _prompt_relevance(source: Source) -> dict[str, Any]:
    b, n, t, d = source.batch(), source.size(), source.size(70), source.size(140)
    return {
        "vision": source.floats(b, n, d),
        "text": source.floats(b, t, d),
        "text_lengths": source.lengths(b, t),
        "reduce": source.pick("max", "mean"),
    }


def _labels(source: Source, b: int, n: int) -> Tensor:
    """Of tokens, a few of them no label of any."""
    labels = source.integers(0, source.pick(2, n // 2, n), b, n)
    strange = torch.rand(labels.shape, generator=source.generator) < source.pick(0.0, 0.1)
    return labels.masked_fill(strange, source.pick(-1, n, INT64.min, INT64.max))


def _cluster_topk(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {
        "labels": _labels(source, b, n),
        "relevance": source.floats(b, n),
        "k": source.budget(n),
        "pool": source.pick(0.5, 0.0, 1.0, 0.25, source.random.random()),
        "lengths": source.lengths(b, n),
        "sort": source.pick(True, False),
    }


def _route_tokens(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    k = source.size(60)
    indices = source.integers(-1, n, b, k) if source.chance(0.2) else source.kept(b, n, k)
    return {
        "features": source.floats(b, n, source.size(140)),
        "indices": indices,
        "labels": source.pick(None, _labels(source, b, n)),
        "lengths": source.lengths(b, n),
    }


def _merge_tokens(source: Source) -> dict[str, Any]:
    b, n, k = source.batch(), source.size(), source.size(60)
    return {
        "tokens": source.floats(b, n, source.size(140)),
        "indices": source.kept(b, n, k),
        "assignment": source.integers(-1, k, b, n),
    }


def _gather_tokens(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {"tokens": source.floats(b, n, source.size(140)), "indices": source.integers(-1, n, b, source.size())}


def _compact_(source: Source) -> dict[str, Any]:
    b, n = source.batch(), source.size()
    return {
        "tokens": source.floats(b, n, source.size(140)),
        "indices": source.kept(b, n, source.budget(n), compacted=True),
    }


GOOD: dict[str, Callable[[Source], dict[str, Any]]] = {
    "cls_attention": lambda source: {**_attention(source, rows=False), "reduce": source.pick("mean", "sum")},
    "attention_profile": lambda source: {**_attention(source, rows=True), "softmax": source.pick(True, False)},
    **{op: globals()[f"_{op}"] for op in SCHEMAS if op not in ("cls_attention", "attention_profile")},
}


# ------------------------------------------------------------------------------------------------ one argument made bad


def _wrong_tensor(source: Source, x: Tensor) -> Any:
    """Not always wrong: a size may be free, and another float dtype is often taken."""
    change = source.pick("rank", "rank", "dtype", "dtype", "size", "size", "device", "type", "type")
    if change == "rank":
        return source.pick(x[None], x.flatten(), x.unsqueeze(-1), x.new_zeros(()))
    if change == "dtype":
        kinds = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.complex64, torch.float64, torch.float16)
        return x.to(source.pick(*kinds))
    if change == "size":
        sizes = list(x.shape)
        sizes[source.random.randrange(len(sizes))] += source.pick(1, 1, 7)
        return x.new_zeros(sizes)
    if change == "device":
        return x.to("meta")
    return source.pick(None, 1.0, "x", [x])


def _wrong_value(source: Source, value: Any) -> Any:
    if isinstance(value, bool):
        return source.pick(None, "x", 2.5)
    if isinstance(value, str):
        return source.pick("", "max ", value.upper(), "\u00e4" * 5, "x" * 5000, None, 1)
    if isinstance(value, int):
        return source.pick(-1, 201, 2**31, 2**62, INT64.min, INT64.max, 2**63, 2**70, 2.5, "2", None)
    return source.pick(-1.0, math.nan, math.inf, -math.inf, 1e300, "1", [1.0])


def _wrong_data(source: Source, name: str, x: Tensor) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    x.view(-1)[source.random.randrange(x.numel())] = source.pick(-2, 10**6, INT64.min, INT64.max)
    return x if name != "assignment" else x.flip(0)


def _break(source: Source, arguments: dict[str, Any]) -> str:
    name = source.pick(*(name for name, value in arguments.items() if value is not None))
    value = arguments[name]
    if name == "iterations" and source.chance(0.5):  # any number of them is good, but a large one does not end
        arguments[name] = -1
    elif name in ("indices", "assignment") and value.numel() and source.chance(0.6):
        arguments[name] = _wrong_data(source, name, value)
    elif isinstance(value, Tensor):
        arguments[name] = _wrong_tensor(source, value)
    else:
        wrong = _wrong_value(source, value)
        arguments[name] = "5" if name == "iterations" and isinstance(wrong, int) and wrong > 100 else wrong
    return name


def _out(source: Source, op: str, arguments: dict[str, Any]) -> Tensor:
    like = SHAPES[op](**arguments)
    out = torch.full(like.shape, 77, dtype=OUT[op])
    # of a negated view the op gets a copy
    inputs = [x for x in _tensors(arguments) if x.untyped_storage().nbytes() >= out.nbytes and not x.is_neg()]
    if inputs and source.chance(0.2):  # in the memory of an input: over its elements, or in a gap between them
        return torch.empty(0, dtype=out.dtype).set_(source.pick(*inputs).untyped_storage(), 0, out.shape, out.stride())
    return arrange(out, source.pick("contiguous", "transposed", "sliced", "misaligned", "batch_inside"))


def arranged(x: Tensor, layout: str) -> Tensor:
    """As ``cases.arrange``, and a view of which only the sign bit is remembered, as ``x.conj().imag`` gives it."""
    if layout != "negated":
        return arrange(x, layout)
    return torch._neg_view(-x) if x.is_floating_point() else x


def _tensors(arguments: dict[str, Any]) -> list[Tensor]:
    return [x for x in arguments.values() if isinstance(x, Tensor) and x.untyped_storage().nbytes()]


def draw(seed: int, index: int, op: str | None = None) -> Call:
    source = Source(seed, index)
    op = op or source.pick(*SCHEMAS)
    arguments = GOOD[op](source)
    call = Call(op, arguments, mode=source.random.choices(("none", "no_grad", "inference_mode"), (6, 1, 1))[0])
    written = "tokens" if op == "compact_" else None
    for name, value in arguments.items():
        if isinstance(value, Tensor) and source.chance(0.6):
            refused = ("expanded", "requires_grad", "negated") if name == written else ()
            layout = source.pick(*(layout for layout in LAYOUTS if layout not in refused))
            if layout == "expanded" and name == "indices" and value.shape[0] == 0:
                continue
            arguments[name], call.layouts[name] = arranged(value, layout), layout
    if op in OUT and source.chance(0.3):
        call.out = _out(source, op, arguments)
        if source.chance(0.2):
            call.out, call.broken = _wrong_tensor(source, call.out), "out"
        elif any(call.out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in _tensors(arguments)):
            call.broken = "out"
    if call.broken is None and source.chance(0.25):
        call.broken = _break(source, arguments)
    return call
