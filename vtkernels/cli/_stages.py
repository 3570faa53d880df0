"""What one ``generate`` costs: times of the stages that the demo shows, and peak memory by the operating system or CUDA."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vtkernels.integrations.transformers.stats import Stats


@dataclass(frozen=True)
class Sample:
    """One run in milliseconds.

    vision: the vision tower. selection: saliency, choice, gather or merge, and packing. prefill: projector, language model and
    head. first: from the call to the first token's logits. decode: per token after the first, None where there is no second.
    """

    vision: float
    selection: float
    prefill: float
    first: float
    decode: float | None

    @classmethod
    def of(cls, stats: Stats) -> Sample:
        """The stages as the demo sums them up: the projector is part of what pruning can save."""
        prefill = stats.projector + stats.prefill
        return cls(stats.vision, stats.selection, prefill, stats.first_token, stats.decode_per_token)


class PeakMemory:
    """Bytes that a run needs on top of what is there when it starts (the weights): ``reset()``, run, ``peak()``.

    On the CPU this is the kernel's high-water mark of the process, which Linux lets a process set back; freed memory is handed
    back first, or the run before would hide this one. ``reason`` says why it cannot be measured; ``highest`` is the peak of
    the whole process (on CUDA: of the tensors) so far.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._base = 0
        self.highest = 0
        self.reason = ""
        if device.type != "cuda":
            try:
                self.highest = _resident("VmHWM")
                _reset_mark()
            except (OSError, StopIteration):
                self.reason = "this system does not let a process set its memory mark back"

    @property
    def precision(self) -> str:
        """How far ``peak()`` can be trusted, or why there is none."""
        if self.reason:
            return f"not measured: {self.reason}"
        if self._device.type == "cuda":
            return "peak of torch's allocator above the loaded model"
        return "peak of the process above the loaded model, to within about 10 MiB"

    def reset(self) -> None:
        """Start anew from what is in use now."""
        if self.reason:
            return
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base = torch.cuda.memory_allocated(self._device)
            return
        self.highest = max(self.highest, _resident("VmHWM"))
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is not None:
            trim(0)
        _reset_mark()
        self._base = _resident("VmRSS")

    def peak(self) -> int | None:
        """Bytes above the level at ``reset()``; None where ``reason`` says why not."""
        if self.reason:
            return None
        mark = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _resident("VmHWM")
        self.highest = max(self.highest, mark)
        return max(0, mark - self._base)


def _reset_mark() -> None:
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))
