"""What one ``generate`` spends where: time stamps by module hooks, peak memory by the operating system or CUDA."""

from __future__ import annotations

import ctypes
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sample:
    """One run in milliseconds.

    vision: the vision tower. selection: saliency, choice and gather (or merge), from the end of the tower to the start of the
    projector and from its end to that of the pruning, plus any choice that runs later. prefill: projector, language model and
    head. first: from the call to the first token's logits. decode: per token after the first, None where there is no second.
    """

    vision: float
    selection: float
    prefill: float
    first: float
    decode: float | None


class TimedMethod:
    """A method that notes when its choice starts and ends; everything else is the method's own."""

    def __init__(self, method: Any, device: torch.device):
        self._method, self._device = method, device
        self.spans: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    @property
    def needs(self) -> Any:
        return self._method.needs

    def select(self, context: Any, k: int) -> Any:
        start = now(self._device)
        selection = self._method.select(context, k)
        self.spans.append((start, now(self._device)))
        return selection


class StageClock:
    """Time stamps around the parts of a model. Attach it after the pruning: hooks run in the order they were added."""

    def __init__(self, model: Any, device: torch.device):
        self._model, self._device = model, device
        self._marks: dict[str, list[float]] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> StageClock:
        core = self._model.model
        for name, part in (
            ("vision", core.vision_tower),
            ("projector", core.multi_modal_projector),
            ("language", core.language_model),
            ("head", self._model.lm_head),
        ):
            # Starts are noted after the pruning's own hooks, ends before them: its work is no part of the module's time.
            self._hooks.callback(part.register_forward_pre_hook(self._mark(f"{name}_start")).remove)
            self._hooks.callback(part.register_forward_hook(self._mark(f"{name}_end"), prepend=True).remove)
        # Pruning after the projector is a hook on it that was there before this one.
        self._hooks.callback(core.multi_modal_projector.register_forward_hook(self._mark("pruning_end")).remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def run(self, inputs: dict[str, Any], method: TimedMethod | None, **options: Any) -> tuple[Sample, torch.Tensor]:
        """One ``generate`` of one prompt: its times and the ids it returns."""
        self._marks.clear()
        if method is not None:
            method.spans.clear()
        start = now(self._device)
        ids = self._model.generate(**inputs, do_sample=False, **options)[0]
        return self._sample(start, method.spans if method is not None else []), ids

    def _mark(self, name: str):
        def hook(*_: object) -> None:
            self._marks.setdefault(name, []).append(now(self._device))

        return hook

    def _sample(self, start: float, spans: list[tuple[float, float]]) -> Sample:
        marks = self._marks
        tokens, pruned = marks["head_end"], marks["pruning_end"][0]
        start_of_projector, end_of_projector = marks["projector_start"][0], marks["projector_end"][0]
        later = sum(end - begin for begin, end in spans if begin > pruned)
        prefill = end_of_projector - start_of_projector + tokens[0] - marks["language_start"][0]
        decode = (tokens[-1] - tokens[0]) / (len(tokens) - 1) if len(tokens) > 1 else None
        return Sample(
            vision=1e3 * (marks["vision_end"][0] - marks["vision_start"][0]),
            selection=1e3 * (start_of_projector - marks["vision_end"][0] + pruned - end_of_projector + later),
            prefill=1e3 * prefill,
            first=1e3 * (tokens[0] - start),
            decode=None if decode is None else 1e3 * decode,
        )


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


def now(device: torch.device) -> float:
    """Seconds, after everything queued on a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_mark() -> None:
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(f"{field}:"))
