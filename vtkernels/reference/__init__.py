"""Plain PyTorch, the definition of each op; also the baseline of the benchmarks.

The functions check nothing: call ``vtkernels.<op>`` for that. State is float32, or float64 where the input is.
"""

from vtkernels.reference.attention_profile import attention_profile
from vtkernels.reference.attention_topk import attention_topk
from vtkernels.reference.cls_attention import cls_attention
from vtkernels.reference.cluster_topk import cluster_topk
from vtkernels.reference.compact_ import compact_
from vtkernels.reference.coverage_select import coverage_select
from vtkernels.reference.crop_topk import crop_topk
from vtkernels.reference.gather_tokens import gather_tokens
from vtkernels.reference.graph_propagate import graph_propagate
from vtkernels.reference.merge_tokens import merge_tokens
from vtkernels.reference.prompt_relevance import prompt_relevance
from vtkernels.reference.route_tokens import route_tokens
from vtkernels.reference.row_topk import row_topk
from vtkernels.reference.scope_select import scope_select
from vtkernels.reference.token_clusters import token_clusters
from vtkernels.reference.topk_select import topk_select

__all__ = [
    "attention_profile",
    "attention_topk",
    "cls_attention",
    "cluster_topk",
    "compact_",
    "coverage_select",
    "crop_topk",
    "gather_tokens",
    "graph_propagate",
    "merge_tokens",
    "prompt_relevance",
    "route_tokens",
    "row_topk",
    "scope_select",
    "token_clusters",
    "topk_select",
]
