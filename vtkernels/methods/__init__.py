"""Pruning methods: small frozen dataclasses made of ops. Nothing here knows a model."""

from vtkernels.methods._base import Context, Method, Policy, Selection
from vtkernels.methods.baselines import Random, TopAttention, Uniform
from vtkernels.methods.fopru import FoPru
from vtkernels.methods.gprune import GPrune
from vtkernels.methods.holov import HoloV
from vtkernels.methods.par import PAR
from vtkernels.methods.scope import Scope

__all__ = [
    "PAR",
    "Context",
    "FoPru",
    "GPrune",
    "HoloV",
    "Method",
    "Policy",
    "Random",
    "Scope",
    "Selection",
    "TopAttention",
    "Uniform",
]
