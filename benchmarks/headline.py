"""The few cases that a short run on a GPU measures, and the times that the kernels are written for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from .clock import Mode
from .harness import OURS
from .registry import SHAPES, Shape

# (shape, K) by op; None: the op has no budget
SELECTION: dict[str, tuple[tuple[str, int | None], ...]] = {
    "scope_select": (
        ("llava-1.5-7b", 64),
        ("llava-1.5-7b", 192),
        ("llava-1.5-7b-batch-64", 64),
        ("llava-next-per-crop", 64),
    ),
    "attention_topk": (("llava-1.5-7b", 64),),
    "graph_propagate": (("llava-1.5-7b", None), ("llava-next-4-crops", None)),
    "topk_select": (("llava-1.5-7b", 64),),
    "coverage_select": (("llava-1.5-7b", 64),),
    "cls_attention": (("llava-1.5-7b", None),),
    "compact_": (("llava-1.5-7b", 64),),
}
_OTHERS = (("llava-1.5-7b", 64),)  # of an op that is asked for by name
WITHOUT = ("reference",)  # compared and not timed
# op, sizes, microseconds of device time in half precision, caches warm, as a CUDA graph, on an H100 or H200
TARGETS: tuple[tuple[str, dict[str, int], float], ...] = (
    ("scope_select", {"B": 1, "N": 576, "D": 1024, "K": 64}, 60),
    ("scope_select", {"B": 1, "N": 576, "D": 1024, "K": 192}, 150),
    ("scope_select", {"B": 64, "N": 576, "D": 1024, "K": 64}, 320),  # 5 an image
    ("attention_topk", {"B": 1, "N": 576, "D": 64, "H": 16, "K": 64}, 8),
    ("topk_select", {"B": 1, "N": 576, "K": 64}, 4),
    ("graph_propagate", {"B": 1, "N": 2304, "D": 4096}, 90),
    ("coverage_select", {"B": 1, "N": 576, "K": 64}, 55),
)
TARGET_MODE = Mode("device", "warm", "graph")


def shapes(op: str) -> Iterator[Shape]:
    """The shapes of an op, each with one budget."""
    known = {shape.name: shape for shape in SHAPES}
    for name, k in SELECTION.get(op, _OTHERS):
        yield replace(known[name], keeps=(k or known[name].keeps[0],))


def target(row: Mapping[str, Any]) -> float | None:
    """The microseconds that the figure of a row is to be held against."""
    mode = Mode(row["timing"], row["cache"], row["launch"])
    if row["provider"] != OURS or mode != TARGET_MODE or row["dtype"] not in ("float16", "bfloat16") or not row["p50_ms"]:
        return None
    sizes = {name: int(row[name]) for name in ("B", "N", "D", "H", "K") if row[name] not in ("", None)}
    return next((limit for op, wanted, limit in TARGETS if op == row["op"] and wanted == sizes), None)


def verdicts(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], float, float, bool]]:
    """Of every row with a target: the row, microseconds measured, microseconds wanted, whether they are met."""
    for row in rows:
        limit = target(row)
        if limit is not None:
            measured = 1e3 * float(row["p50_ms"])
            yield row, measured, limit, measured <= limit
