"""Model code bases that methods can be attached to."""

from vtkernels.integrations._prune import prune
from vtkernels.integrations.transformers.pruning import Pruning
from vtkernels.integrations.transformers.record import Record
from vtkernels.integrations.transformers.stats import Stats

__all__ = ["Pruning", "Record", "Stats", "prune"]
