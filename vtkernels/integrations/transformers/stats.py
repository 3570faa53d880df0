"""What a call of a model costs, on request: tokens before and after, and milliseconds by stage."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers import generation
from vtkernels.integrations.transformers.attach import Attachments, named_arguments
from vtkernels.integrations.transformers.record import Record
from vtkernels.integrations.transformers.visual import hooked_projectors

_STAGES = ("vision", "selection", "projector", "prefill", "decode", "other")
_TOWERS = ("vision_tower", "image_tower", "video_tower")
_ENCODERS = ("get_image_features", "get_video_features")


@dataclass(frozen=True)
class Stats:
    """What one call of ``forward`` or ``generate`` cost. Times are in milliseconds; the stages do not overlap.

    Attributes:
        tokens_before: visual tokens of each image in the whole prompt, as in :class:`Record`; videos follow the images.
        tokens_after: those that the language model saw.
        prompt_before: tokens of each row of the whole prompt, padding not counted; with ``generate``, what a cache already
            holds is part of the prompt.
        prompt_after: those of the shortened prompt.
        vision: the vision tower, or both.
        selection: what else turns pixels into visual tokens: saliency, choice, gather or merge, and the model's own packing.
        projector: the projector.
        prefill: from the visual tokens to the first logits: embedding of the prompt, language model, head.
        decode: ``generate`` from the first logits on, 0.0 where no second token follows.
        other: everything else: shortening the prompt, the preparations of ``generate``, a loss.
        first_token: from the call to the first logits.
        new_tokens: tokens that ``generate`` made per row, in the longest one; the prefill gives the first.
    """

    tokens_before: tuple[int, ...]
    tokens_after: tuple[int, ...]
    prompt_before: tuple[int, ...]
    prompt_after: tuple[int, ...]
    vision: float
    selection: float
    projector: float
    prefill: float
    decode: float
    other: float
    first_token: float
    new_tokens: int

    @property
    def total(self) -> float:
        """From the call to its return."""
        total: float = sum(getattr(self, stage) for stage in _STAGES)
        return total

    @property
    def decode_per_token(self) -> float | None:
        """``decode`` for each token after the first; None where there is none."""
        return self.decode / (self.new_tokens - 1) if self.new_tokens > 1 else None

    def __str__(self) -> str:
        visual = Counter(zip(self.tokens_before, self.tokens_after, strict=True))
        each = ", ".join(f"{f'{n} x ' if n > 1 else ''}{before} -> {after}" for (before, after), n in visual.items())
        rows = f"{len(self.prompt_before)} row{'s' * (len(self.prompt_before) != 1)}, padding not counted"
        lines = [
            f"visual tokens  {_change(self.tokens_before, self.tokens_after)}" + (f": {each}" if each else ""),
            f"prompt tokens  {_change(self.prompt_before, self.prompt_after)}: {rows}",
            "",
            f"{'stage':<10}{'ms':>10}{'share':>8}",
        ]
        for stage in (*_STAGES, "total"):
            spent = getattr(self, stage)
            lines.append(f"{stage:<10}{spent:>10.2f}{spent / self.total:>8.1%}")
        lines.append(f"\nfirst token after {self.first_token:.2f} ms")
        if self.decode_per_token is not None:
            lines[-1] += f", {self.new_tokens - 1} decoded after it, {self.decode_per_token:.2f} ms each"
        return "\n".join(lines)


class Run:
    """A call while it runs.

    Attributes:
        model: the model that was called.
        record: what its prefill kept, if it is pruned.
        prompts: name of the entry with the ids, arguments of the call before the prompt was shortened and after.
    """

    def __init__(self, model: nn.Module, now: Callable[[], int]) -> None:
        self.model = model
        self.record = Record()
        self.prompts: tuple[str, dict[str, Any], dict[str, Any]] | None = None
        self._now = now
        self._spent: dict[str, int] = {}
        self._since: dict[str, int] = {}
        self._first: int | None = None
        self._start = self._stop = now()

    def begin(self, stage: str) -> None:
        """A stage starts, or starts anew. From the first logits on, everything is decoding: no clock until the end."""
        if self._first is None:
            self._since[stage] = self._now()

    def end(self, stage: str) -> None:
        """It ends; the same stage may come again."""
        if self._first is None and stage in self._since:
            now = self._now()
            self._spent[stage] = self._spent.get(stage, 0) + now - self._since.pop(stage)
            if stage == "prefill":
                self._first = now

    def stop(self) -> None:
        """The call returns."""
        self._stop = self._now()

    def stats(self, new_tokens: int) -> Stats:
        """The :class:`Stats` of the call, after ``stop()``.

        Raises:
            RuntimeError: a part of the model was not seen running.
        """
        spent, first = self._spent, self._first
        missing = {"prefill", *(("vision", "projector") if "encode" in spent else ())} - spent.keys()
        if missing or first is None:
            raise RuntimeError(
                f"no time was taken of {' and '.join(sorted(missing))}: torch.compile ran the model without its hooks; measure "
                f"it uncompiled, or set torch._dynamo.config.skip_nnmodule_hook_guards = False before it is compiled"
            )
        vision, projector, prefill = (spent.get(stage, 0) for stage in ("vision", "projector", "prefill"))
        selection = spent.get("encode", 0) - vision - projector
        decode = self._stop - first if new_tokens > 1 else 0
        other = self._stop - self._start - vision - selection - projector - prefill - decode
        name, before, after = self.prompts or ("", {}, {})
        return Stats(
            tokens_before=tuple(self.record.tokens_before),
            tokens_after=tuple(self.record.tokens_after),
            prompt_before=_lengths(before, name),
            prompt_after=_lengths(after, name),
            vision=vision / 1e6,
            selection=selection / 1e6,
            projector=projector / 1e6,
            prefill=prefill / 1e6,
            decode=decode / 1e6,
            other=other / 1e6,
            first_token=(first - self._start) / 1e6,
            new_tokens=new_tokens,
        )


# The measured call that runs in this thread.
_RUN: ContextVar[Run | None] = ContextVar("vtkernels_run", default=None)


def running(model: nn.Module) -> Run | None:
    """The measured call of ``model`` that runs in this thread."""
    run = _RUN.get()
    return run if run is not None and run.model is model else None


class Meter:
    """Takes the :class:`Stats` of every call of a model, pruned or not, from ``attach()`` to ``detach()``.

    Attach it after a pruning: the work of the pruning's hooks is no part of the module that they are on. A GPU is synchronised
    at the borders of the stages, and not between decoded tokens.

    Attributes:
        calls: the :class:`Stats` of each call that has returned. ``notify`` gets them too.
    """

    def __init__(self, model: nn.Module, notify: Callable[[Stats], None] | None = None) -> None:
        self.calls: list[Stats] = []
        self._model, self._notify = model, notify
        self._devices = sorted({p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}, key=str)
        self._attachments = Attachments()
        self._attached = False

    def attach(self) -> Meter:
        """Attach to the model, wholly or not at all."""
        core: Any = self._model.model
        head: Any = self._model.lm_head
        model, wrap = self._model, self._attachments.wrap
        self._attached = True
        try:
            # The instance's forward and not a hook, because wrappers such as PEFT's call forward itself.
            wrap(model, "forward", self._forward)
            wrap(model, "generate", self._generate)
            for name in _ENCODERS:
                if hasattr(core, name):
                    wrap(core, name, self._encode)
            for name in _TOWERS:
                if hasattr(core, name):
                    self._watch(getattr(core, name), "vision")
            for part in hooked_projectors(core.multi_modal_projector) or [core.multi_modal_projector]:
                self._watch(part, "projector")
            # Not the language model: it may be compiled as one graph, which a hook would break.
            self._watch(head, "prefill", start=False)
        except BaseException:
            self.detach()
            raise
        return self

    def detach(self) -> None:
        """Leave the model as it was. Twice is harmless."""
        self._attached = False
        self._attachments.undo()

    def __enter__(self) -> Meter:
        return self.attach()

    def __exit__(self, *_: object) -> None:
        self.detach()

    def _watch(self, module: nn.Module, stage: str, *, start: bool = True, end: bool = True) -> None:
        """Starts are noted after the hooks that are there already, ends before them."""
        if start:
            self._attachments.hook(module.register_forward_pre_hook, functools.partial(_begin, self._model, stage))
        if end:
            self._attachments.hook(module.register_forward_hook, functools.partial(_end, self._model, stage), prepend=True)

    def _now(self) -> int:
        """Nanoseconds, after everything queued on a GPU is done."""
        for device in self._devices:
            torch.accelerator.synchronize(device)
        return time.perf_counter_ns()

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        run = running(self._model)
        if run is not None:  # a step of generate
            run.begin("prefill")
            return original(*args, **kwargs)
        if not self._attached:
            return original(*args, **kwargs)
        result, run = self._run(original, args, kwargs, begin="prefill")
        if run.prompts is None:
            _note_whole(run, named_arguments(original, args, kwargs))
        self._take(run.stats(0))
        return result

    def _generate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._attached or running(self._model) is not None:
            return original(*args, **kwargs)
        result, run = self._run(original, args, kwargs)
        arguments = named_arguments(original, args, kwargs)
        ids = arguments.get("inputs" if arguments.get("inputs") is not None else "input_ids")
        if run.prompts is None:
            if ids is not None and arguments.get("attention_mask") is None:
                arguments["attention_mask"] = generation.padding_mask(self._model, arguments, ids)
            _note_whole(run, arguments)
        sequences = result if isinstance(result, Tensor) else result.sequences
        self._take(run.stats(sequences.shape[1] - (0 if ids is None else ids.shape[1])))
        return result

    def _take(self, stats: Stats) -> None:
        self.calls.append(stats)
        if self._notify is not None:
            self._notify(stats)

    def _run(self, original: Any, args: tuple[Any, ...], kwargs: dict[str, Any], begin: str | None = None) -> tuple[Any, Run]:
        run = Run(self._model, self._now)
        token = _RUN.set(run)
        try:
            if begin is not None:
                run.begin(begin)
            result = original(*args, **kwargs)
        finally:
            _RUN.reset(token)
        run.stop()
        return result, run

    def _encode(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        run = running(self._model)
        if run is None:
            return original(*args, **kwargs)
        run.begin("encode")
        result = original(*args, **kwargs)
        run.end("encode")
        run.begin("prefill")
        return result


def _begin(model: nn.Module, stage: str, *_: Any) -> None:
    run = running(model)
    if run is not None:
        run.begin(stage)


def _end(model: nn.Module, stage: str, *_: Any) -> None:
    run = running(model)
    if run is not None:
        run.end(stage)


def _note_whole(run: Run, arguments: dict[str, Any]) -> None:
    """The prompt of a call that shortened none."""
    given = [name for name in ("inputs_embeds", "inputs", "input_ids") if arguments.get(name) is not None]
    if given:
        run.prompts = (given[0], arguments, arguments)


def _lengths(arguments: dict[str, Any], name: str) -> tuple[int, ...]:
    """Tokens of each row of ``arguments[name]``, padding not counted. A prepared mask does not say what is padding."""
    if not name:
        return ()
    prompt: Tensor = arguments[name]
    rows, columns = prompt.shape[:2]
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return (columns,) * rows
    lengths: list[int] = mask[:, mask.shape[1] - columns :].ne(0).sum(1).tolist()
    return tuple(lengths)


def _change(before: tuple[int, ...], after: tuple[int, ...]) -> str:
    share = f" ({sum(after) / sum(before):.1%})" if sum(before) else ""
    return f"{sum(before)} -> {sum(after)}{share}"
