"""Triton kernels: the portable GPU path (NVIDIA, AMD). Importing this package imports nothing of Triton.

One file per op, with the kernels and a launcher of the signature of ``reference/<op>.py``; arguments are already checked.
Triton is imported when the first launcher is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

# Ops with a kernel. Why the others have none: docs/backends.md.
KERNELS = (
    "scope_select",
    "coverage_select",
    "graph_propagate",
    "cls_attention",
    "attention_profile",
    "topk_select",
    "attention_topk",
    "crop_topk",
    "token_clusters",
    "compact_",
)


def load(op: str) -> Callable[..., Any]:
    """The launcher of ``op``; imports Triton."""
    launcher: Callable[..., Any] = getattr(importlib.import_module(f".{op}", __name__), op)
    return launcher
