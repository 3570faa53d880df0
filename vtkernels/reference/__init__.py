"""Plain PyTorch, the definition of each op; also the baseline of the benchmarks.

The functions check nothing: call ``vtkernels.<op>`` for that. State is float32, or float64 where the input is.
"""

from vtkernels.reference.attention_topk import attention_topk
from vtkernels.reference.cls_attention import cls_attention
from vtkernels.reference.compact_ import compact_
from vtkernels.reference.coverage_select import coverage_select
from vtkernels.reference.gather_tokens import gather_tokens
from vtkernels.reference.scope_select import scope_select
from vtkernels.reference.topk_select import topk_select

__all__ = [
    "attention_topk",
    "cls_attention",
    "compact_",
    "coverage_select",
    "gather_tokens",
    "scope_select",
    "topk_select",
]
