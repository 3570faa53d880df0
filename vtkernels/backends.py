"""Which backends exist, why one is unavailable, and which one runs.

The reference sits at ``CompositeExplicitAutograd``; the native library overrides it on the devices it has kernels for, Triton
on GPUs where the native library has none (a ROCm build of torch calls its devices ``cuda`` too). That is the automatic choice.
An explicit choice puts its kernels on top for this process and never falls back.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NoReturn

import torch

from vtkernels import _checks, _load, reference, triton
from vtkernels._ops import NAMESPACE, qualified
from vtkernels._schemas import LIBRARY, OUT, SCHEMAS, SHAPES, Kernel
from vtkernels.triton import _launch

BACKENDS = ("native", "triton", "reference")
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}
_HAS_TRITON = importlib.util.find_spec("triton") is not None
_NEEDS_INTERPRETER = "runs on CPU tensors only under TRITON_INTERPRET=1"


@dataclass(frozen=True)
class Status:
    """Whether a backend can run on a device, and if not, why."""

    available: bool
    reason: str = ""


def status(name: str, device: str = "cpu") -> Status:
    """Whether backend ``name`` can run on ``device`` here, and if not, why."""
    _check_name(name)
    if name == "native":
        if _load.NATIVE is None:
            return Status(False, str(_load.WHY_NOT))
        if not any(_NATIVE[op, device] for op in SCHEMAS):
            return Status(False, f"the native library has no {device} kernels")
    if name == "triton":
        reason = _why_no_triton(device)
        return Status(not reason, reason)
    return Status(True)


def _why_no_triton(device: str) -> str:
    """Asks the driver only when asked: a count of devices at import would break ``fork`` for the caller."""
    if not _HAS_TRITON:
        return "triton is not installed (pip install triton; it exists for Linux)"
    if device == "cpu":
        return "" if _launch.interpreted() else _NEEDS_INTERPRETER
    if not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        return "no driver or no device that torch can use" if built else "no driver: this torch is built without CUDA and ROCm"
    return ""


def which(op: str, device: str = "cpu") -> str:
    """The backend that runs ``op`` on ``device`` now: ``"native"``, ``"triton"`` or ``"reference"``."""
    if op not in SCHEMAS:
        raise ValueError(f"op must be one of {', '.join(SCHEMAS)}, got {op!r}")
    if _chosen != "auto":
        return _chosen
    if _NATIVE[op, device]:
        return "native"
    return "triton" if device == "cuda" and op in triton.KERNELS and status("triton", device).available else "reference"


class backend:
    """Choose the backend of every op in this process: ``"auto"``, ``"native"``, ``"triton"`` or ``"reference"``.

    Takes effect at once; as a context manager it restores the previous choice at the end. An explicit backend that cannot
    run raises and says why; only ``"auto"`` falls back. The choice holds for all threads, for ``torch.ops`` calls and for
    compiled graphs.

    Example:
        >>> import vtkernels as vt
        >>> with vt.backend("reference"):
        ...     vt.which("topk_select")
        'reference'
    """

    def __init__(self, name: str):
        self._previous = _chosen
        _choose(name)

    def __enter__(self) -> backend:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _choose(self._previous)


_chosen = "auto"
_override: torch.library.Library | None = None


def _check_name(name: str, *more: str) -> None:
    if name not in BACKENDS + more:
        raise ValueError(f"backend must be one of {', '.join(more + BACKENDS)}, got {name!r}")


def _choose(name: str) -> None:
    global _chosen, _override
    _check_name(name, "auto")
    if name != "auto" and not any(status(name, device).available for device in _DEVICES):
        raise RuntimeError(f"backend {name!r} cannot run here: {status(name).reason}")
    if _override is not None:
        _override._destroy()
        _override = None
    if name != "auto":
        _override = torch.library.Library(NAMESPACE, "IMPL")
        override = functools.partial(_override.impl, allow_override=True)  # the default from torch 2.13 on
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*previously registered kernel")  # that is the purpose
            for op in _overloads():
                for device, key in _DEVICES.items():
                    if name == "reference":
                        override(op, _reference(op), key)
                    elif name == "triton":
                        override(op, _triton(op, device), key)
                    elif not _NATIVE[op, device]:
                        override(op, _missing(op, name, device), key)
    _chosen = name


def _overloads() -> list[str]:
    return [*SCHEMAS, *(f"{name}.out" for name in OUT)]


def _missing(op: str, name: str, device: str, reason: str = "") -> Kernel:
    def kernel(*args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(
            f"{qualified(op)} has no {name} kernel on {device}{reason and f' ({reason})'}; use vtkernels.backend('auto') or "
            f"VTKERNELS_BACKEND=auto, which runs another backend there"
        )

    return kernel


def _reference(op: str) -> Kernel:
    """The op's reference as a dispatcher kernel."""
    return _dispatched(op, getattr(reference, op.removesuffix(".out")))


def _triton(op: str, device: str) -> Kernel:
    """The op's Triton kernel as a dispatcher kernel, or one that says why there is none."""
    name = op.removesuffix(".out")
    if name not in triton.KERNELS:
        return _missing(op, "triton", device)
    if device == "cpu" and not _launch.interpreted():
        return _missing(op, "triton", device, _NEEDS_INTERPRETER)
    return _dispatched(op, _launcher(name))


def _automatic_triton(op: str) -> Kernel:
    """Triton on a GPU without native kernels; float64, for which it has none, runs in the reference."""
    name = op.removesuffix(".out")
    launcher, definition = _launcher(name), getattr(reference, name)

    def function(*args: Any, **kwargs: Any) -> Any:
        wide = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in (*args, *kwargs.values()))
        return (definition if wide else launcher)(*args, **kwargs)

    return _dispatched(op, function)


def _launcher(name: str) -> Kernel:
    """The op's launcher, loaded at the first call, on the device of its input: Triton launches on the current one."""
    launch: Kernel | None = None

    def function(*args: Any, **kwargs: Any) -> Any:
        nonlocal launch
        launch = launch or triton.load(name)
        if not args[0].is_cuda:
            return launch(*args, **kwargs)
        with torch.cuda.device(args[0].device):
            return launch(*args, **kwargs)

    return function


def _dispatched(op: str, function: Kernel) -> Kernel:
    """``function`` as a dispatcher kernel: checks first, and never recorded by autograd."""
    name = op.removesuffix(".out")

    def check(*args: Any, **kwargs: Any) -> None:
        getattr(_checks, name)(*args, **kwargs)
        if name in _checks.DATA and args[0].device.type == "cpu":
            _checks.DATA[name](*args, **kwargs)

    @torch.no_grad()
    def kernel(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return function(*args, **kwargs)

    @torch.no_grad()
    def kernel_out(*args: Any, out: torch.Tensor, **kwargs: Any) -> None:
        check(*args, **kwargs)
        _checks.out(name, out, OUT[name], SHAPES[name](*args, **kwargs).shape, args[0])
        _checks.apart(name, out, *args, **kwargs)
        out.copy_(function(*args, **kwargs))

    return kernel_out if op.endswith(".out") else kernel


def _register() -> None:
    for op in _overloads():
        LIBRARY.impl(op, _reference(op), "CompositeExplicitAutograd")


_register()
_NATIVE = {
    (op, device): torch._C._dispatch_has_kernel_for_dispatch_key(qualified(op), key)
    for op in _overloads()
    for device, key in _DEVICES.items()
}


def _register_triton() -> None:
    for op in _overloads():
        if _HAS_TRITON and op.removesuffix(".out") in triton.KERNELS and not _NATIVE[op, "cuda"]:
            LIBRARY.impl(op, _automatic_triton(op), "CUDA")


_register_triton()
try:
    _choose(os.environ.get("VTKERNELS_BACKEND", "auto"))
except (ValueError, RuntimeError) as error:
    raise type(error)(f"VTKERNELS_BACKEND: {error}") from None
