"""Which backends exist, why one is unavailable, and which one runs.

The reference sits at ``CompositeExplicitAutograd``; the native library overrides it on the devices it has kernels for.
That is the automatic choice. An explicit choice puts its kernels on top for this process and never falls back.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from types import TracebackType

import torch

from vtkernels import _checks, _load, reference
from vtkernels._ops import NAMESPACE, qualified
from vtkernels._schemas import LIBRARY, OUT, SCHEMAS, SHAPES

BACKENDS = ("native", "triton", "reference")
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


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
        return Status(False, "this version has no Triton kernels")
    return Status(True)


def which(op: str, device: str = "cpu") -> str:
    """The backend that runs ``op`` on ``device`` now: ``"native"``, ``"triton"`` or ``"reference"``."""
    if op not in SCHEMAS:
        raise ValueError(f"op must be one of {', '.join(SCHEMAS)}, got {op!r}")
    if _chosen != "auto":
        return _chosen
    return "native" if _NATIVE[op, device] else "reference"


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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*previously registered kernel")  # that is the purpose
            for op in _overloads():
                for device, key in _DEVICES.items():
                    if name == "reference":
                        _override.impl(op, _reference(op), key)
                    elif not _NATIVE[op, device]:
                        _override.impl(op, _missing(op, name, device), key)
    _chosen = name


def _overloads() -> list[str]:
    return [*SCHEMAS, *(f"{name}.out" for name in OUT)]


def _missing(op: str, name: str, device: str):
    def kernel(*args, **kwargs):
        raise RuntimeError(
            f"{qualified(op)} has no {name} kernel on {device}; use vtkernels.backend('auto') or VTKERNELS_BACKEND=auto, which "
            f"runs the reference there"
        )

    return kernel


def _reference(op: str):
    """The op's reference as a dispatcher kernel: checks first, and never recorded by autograd."""
    name = op.removesuffix(".out")
    function = getattr(reference, name)

    def check(*args, **kwargs):
        getattr(_checks, name)(*args, **kwargs)
        if name in _checks.DATA and args[0].device.type == "cpu":
            _checks.DATA[name](*args, **kwargs)

    @torch.no_grad()
    def kernel(*args, **kwargs):
        check(*args, **kwargs)
        return function(*args, **kwargs)

    @torch.no_grad()
    def kernel_out(*args, out, **kwargs):
        check(*args, **kwargs)
        _checks.out(name, out, OUT[name], SHAPES[name](*args, **kwargs).shape, args[0])
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
try:
    _choose(os.environ.get("VTKERNELS_BACKEND", "auto"))
except (ValueError, RuntimeError) as error:
    raise type(error)(f"VTKERNELS_BACKEND: {error}") from None
