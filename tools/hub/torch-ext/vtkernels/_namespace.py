"""The op namespace, as the kernel builder made it for this build."""

from __future__ import annotations

from ._ops import add_op_namespace_prefix as qualified
from ._ops import ops

NAMESPACE = qualified("").rstrip(":")

__all__ = ["NAMESPACE", "ops", "qualified"]
