"""Model code bases that methods can be attached to."""

from vtkernels.integrations.transformers import Pruning, Record, prune

__all__ = ["Pruning", "Record", "prune"]
