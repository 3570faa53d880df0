"""Launch parameters from a committed table, and what a launcher has to know of its device. Importing it imports no Triton.

``launch.json`` holds, for an architecture (``"sm_90"``, ``"gfx942"``, or ``"default"``) and a kernel, a list of rows in rising
order: the first row whose ``"up_to"`` covers the shape decides. An architecture without a row takes the default. Nothing is
tuned at run time; ``vtkernels tune`` writes a table of the same form, which ``VTKERNELS_TRITON_TABLE`` puts before the
committed one.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtkernels._ops import qualified

# {architecture: {kernel: [{"up_to": bounds, "use": parameters}, ...]}}
Table = dict[str, dict[str, list[dict[str, dict[str, Any]]]]]

TABLE = Path(__file__).with_name("launch.json")
_overrides: dict[str, dict[str, Any]] = {}
_record: dict[str, tuple[dict[str, int], dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Build:
    """One kernel at one shape class, to be compiled ahead of time.

    ``signature``: types of the run-time arguments (``"*fp16"``, ``"i32"``, ``"fp32"``); every other argument of the kernel is
    in ``constexprs`` (an absent tensor as None). ``divisible``: arguments that are multiples of 16, as a launch finds them.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int | None = None
    divisible: tuple[str, ...] = ()


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors. Read by Triton when it is first imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def next_power_of_2(n: int) -> int:
    """The least power of two >= max(n, 1)."""
    return 1 << max(n - 1, 0).bit_length()


def refuse_float64(op: str, **tensors: Tensor | None) -> None:
    """Kernels keep float32 state; float64 input would lose what its user asked for."""
    for name, x in tensors.items():
        if x is not None and x.dtype == torch.float64:
            raise TypeError(
                f"{qualified(op)}: {name} must be float32, float16 or bfloat16 for the triton backend, got float64; "
                f"float64 runs in the reference and in the native CPU kernels"
            )


def architecture(device: torch.device) -> str:
    """``"sm_90"`` on NVIDIA, ``"gfx942"`` on AMD, ``"interpreter"`` on the CPU."""
    if device.type != "cuda":
        return "interpreter"
    return _architecture(device.index if device.index is not None else torch.cuda.current_device())


@functools.cache
def _architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors (compute units); 1 in the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def parameters(kernel: str, device: torch.device, **shape: int) -> dict[str, Any]:
    """Block sizes, ``num_warps`` and ``num_stages`` of ``kernel`` for this device and shape, to be passed to its launch.

    With them goes what Triton would decide for us, differently in different versions: products and sums are fused.
    ``maxnreg`` is for NVIDIA alone. ptxas spills a few registers of a kernel where one more block then fits a multiprocessor;
    told how many it may use, it does not.

    ``shape`` must not hold the batch size where a block size decides the order of a sum: an image's bits may not depend on
    its company.
    """
    chosen = _row(kernel, architecture(device), tuple(sorted(shape.items())))
    chosen = chosen | _overrides.get(kernel, {})
    if _record is not None:
        _record[kernel] = (shape, chosen)
    if "maxnreg" in chosen and not architecture(device).startswith("sm_"):
        chosen = {name: value for name, value in chosen.items() if name != "maxnreg"}
    return chosen | {"enable_fp_fusion": True}


def default_parameters(kernel: str, **shape: int) -> dict[str, Any]:
    """The committed parameters where the architecture has no row: what ahead-of-time builds compile."""
    return dict(_row(kernel, "default", tuple(sorted(shape.items()))))


def options(use: dict[str, Any]) -> dict[str, Any]:
    """Takes the parameters that are the compiler's out of ``use``, and leaves those of the kernel."""
    return {name: use.pop(name) for name in ("num_warps", "num_stages", "maxnreg") if name in use}


@functools.lru_cache(maxsize=4096)
def _row(kernel: str, arch: str, shape: tuple[tuple[str, int], ...]) -> dict[str, Any]:
    size = dict(shape)
    for table in tables():
        for row in table.get(arch, {}).get(kernel, ()):
            if all(size[name] <= bound for name, bound in row.get("up_to", {}).items()):
                return row["use"]
    for row in tables()[-1]["default"][kernel]:
        if all(size[name] <= bound for name, bound in row.get("up_to", {}).items()):
            return row["use"]
    raise LookupError(f"launch.json has no default row of {kernel} for {size}; the last row must have no up_to")


@functools.cache
def tables() -> tuple[Table, ...]:
    """The user's table, if ``VTKERNELS_TRITON_TABLE`` names one, and the committed table."""
    committed: Table = json.loads(TABLE.read_text())
    path = os.environ.get("VTKERNELS_TRITON_TABLE")
    if not path:
        return (committed,)
    try:
        own = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"VTKERNELS_TRITON_TABLE: cannot read {path}: {error}; write one with 'vtkernels tune --output'"
        ) from None
    _check_table(path, own, committed)
    return own, committed


def _check_table(path: str, own: Any, committed: Table) -> None:
    """A row that could never be chosen, or a block size the kernel does not have, is an error rather than silence."""

    def refuse(what: str) -> None:
        raise ValueError(f"VTKERNELS_TRITON_TABLE: {path}: {what}; write one with 'vtkernels tune --output'")

    if not isinstance(own, dict):
        refuse("the table must be an object of architectures")
    for arch, kernels in own.items():
        for kernel, rows in kernels.items():
            if kernel not in committed["default"]:
                refuse(f"unknown kernel {kernel!r} under {arch!r}, known are {', '.join(sorted(committed['default']))}")
            known = set().union(*(row["use"] for row in committed["default"][kernel])) - {"maxnreg"}
            for row in rows:
                if set(row["use"]) - {"maxnreg"} != known:
                    refuse(f"{kernel} under {arch!r} must set {', '.join(sorted(known))}, got {', '.join(sorted(row['use']))}")


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, tuple[dict[str, int], dict[str, Any]]]]:
    """The kernels launched within the context: name -> (shape, parameters)."""
    global _record
    before, _record = _record, {}
    try:
        yield _record
    finally:
        _record = before


@contextlib.contextmanager
def override(kernel: str, **values: Any) -> Iterator[None]:
    """Other parameters for ``kernel`` within the context: what ``vtkernels tune`` measures."""
    before = _overrides.get(kernel)
    _overrides[kernel] = values
    try:
        yield
    finally:
        if before is None:
            del _overrides[kernel]
        else:
            _overrides[kernel] = before


# What Triton raises as a plain RuntimeError: of its compiler, and of a launch that left the device as it was.
_REFUSALS = ("PassManager::run failed", "too many blocks in cooperative launch", "too many resources requested for launch")


def refused(error: Exception) -> bool:
    """Whether Triton, ptxas or the driver raised it for parameters that a kernel or the device cannot take."""
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    if isinstance(error, CompilationError | OutOfResources | PTXASError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _REFUSALS)
