"""Fused kernels for training-free visual token pruning in LLaVA-style vision-language models."""

from vtkernels import reference
from vtkernels._version import __version__
from vtkernels.backends import backend, status, which
from vtkernels.ops import (
    attention_topk,
    cls_attention,
    compact_,
    coverage_select,
    gather_tokens,
    scope_select,
    topk_select,
)

__all__ = [
    "__version__",
    "attention_topk",
    "backend",
    "cls_attention",
    "compact_",
    "coverage_select",
    "gather_tokens",
    "reference",
    "scope_select",
    "status",
    "topk_select",
    "which",
]
