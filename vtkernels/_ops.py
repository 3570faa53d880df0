"""The only place that knows the op namespace."""

from __future__ import annotations

import torch

NAMESPACE = "vtkernels"
ops = getattr(torch.ops, NAMESPACE)


def qualified(name: str) -> str:
    """``"scope_select.out"`` -> ``"vtkernels::scope_select.out"``."""
    return f"{NAMESPACE}::{name}"
