"""Fused kernels for training-free visual token pruning in LLaVA-style vision-language models."""

from vtkernels import reference
from vtkernels._version import __version__
from vtkernels.backends import backend, status, which
from vtkernels.integrations import Pruning, Record, prune
from vtkernels.methods import PAR, Context, FoPru, GPrune, HoloV, Method, Random, Scope, Selection, TopAttention, Uniform
from vtkernels.ops import (
    attention_profile,
    attention_topk,
    cls_attention,
    cluster_topk,
    compact_,
    coverage_select,
    crop_topk,
    gather_tokens,
    graph_propagate,
    merge_tokens,
    prompt_relevance,
    route_tokens,
    row_topk,
    scope_select,
    token_clusters,
    topk_select,
)

__all__ = [
    "PAR",
    "Context",
    "FoPru",
    "GPrune",
    "HoloV",
    "Method",
    "Pruning",
    "Random",
    "Record",
    "Scope",
    "Selection",
    "TopAttention",
    "Uniform",
    "__version__",
    "attention_profile",
    "attention_topk",
    "backend",
    "cls_attention",
    "cluster_topk",
    "compact_",
    "coverage_select",
    "crop_topk",
    "gather_tokens",
    "graph_propagate",
    "merge_tokens",
    "prompt_relevance",
    "prune",
    "reference",
    "route_tokens",
    "row_topk",
    "scope_select",
    "status",
    "token_clusters",
    "topk_select",
    "which",
]
