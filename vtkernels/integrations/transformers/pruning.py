"""A pruned model: what ``vt.prune`` returns, and how it stands between the caller and the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers import cache, generation, positions
from vtkernels.integrations.transformers.attach import Attachments, named_arguments
from vtkernels.integrations.transformers.cache import Cached
from vtkernels.integrations.transformers.capture import Encoding
from vtkernels.integrations.transformers.options import Options
from vtkernels.integrations.transformers.positions import POSITIONS, Positions
from vtkernels.integrations.transformers.prompt import Placeholders, Short, Text, rows_of, shorten, text_of_rows
from vtkernels.integrations.transformers.record import Record
from vtkernels.integrations.transformers.stats import Meter, Stats, running
from vtkernels.integrations.transformers.visual import Visual, hook_projector
from vtkernels.methods import Method

MARK = "_vtkernels_pruning"
_T = TypeVar("_T")


@dataclass(frozen=True)
class _Call:
    """A running ``generate``: its forwards get a prompt that is already short. ``counts``: images of each kind."""

    pruning: Pruning
    counts: tuple[int, ...]


_CALL: ContextVar[_Call | None] = ContextVar("vtkernels_generate", default=None)
# What the running call has to say about its images, by kind, where the method asks for the prompt.
TEXT: ContextVar[dict[str, Text] | None] = ContextVar("vtkernels_text", default=None)
# The record that the running call writes.
_RECORD: ContextVar[Record | None] = ContextVar("vtkernels_record", default=None)


class Pruning:
    """A model with pruning attached. Made by :func:`vtkernels.prune`; a context manager that removes the pruning at its end.

    Attributes:
        model: the model, pruned in place.
        method: the method that chooses.
        keep: tokens per image or fraction, as given.
        options: budget, positions, newlines and padding, the method's own choices filled in.
        last: the :class:`Record` of the latest prefill (with ``generate``: of its prefill; without images: empty lists).
        stats: the :class:`Stats` of the latest call inside ``measure()``; None until there is one.

    ``forward`` returns logits of the shortened prompt. Logits processors and stopping criteria of ``generate`` see the
    shortened ids; ``max_length``, ``min_length``, a streamer and the returned sequences speak of the original ones.
    """

    def __init__(
        self, model: nn.Module, method: Method, keep: int | float, options: Options, visuals: Sequence[type[Visual]]
    ) -> None:
        self.model = model
        self.method = method
        self.keep = keep
        self.options = options
        self.last = Record()
        self.stats: Stats | None = None
        self.attachments = Attachments()
        self._meter: Meter | None = None
        self._visuals = [visual(self) for visual in visuals]
        for visual in self._visuals:
            visual.check()

    def attach(self) -> Pruning:
        """Attach to the model, wholly or not at all."""
        core: Any = self.model.model
        try:
            # The instance's forward and not a hook, because wrappers such as PEFT's call forward itself.
            self.attachments.wrap(self.model, "forward", self._forward)
            self.attachments.wrap(self.model, "generate", self._generate)
            hook_projector(core.multi_modal_projector, self.attachments)
            for visual in self._visuals:
                visual.attach(self.attachments)
            if self.options.positions == "original":
                positions.attach(core.language_model, self.attachments)
        except BaseException:
            self.remove()
            raise
        vars(self.model)[MARK] = self
        return self

    def remove(self) -> None:
        """Restore the model, and end a measurement. Twice is harmless."""
        if self._meter is not None:
            self._meter.detach()
        self.attachments.undo()
        if vars(self.model).get(MARK) is self:
            del vars(self.model)[MARK]

    def __enter__(self) -> Pruning:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    @property
    def attached(self) -> bool:
        return vars(self.model).get(MARK) is self

    @contextmanager
    def measure(self) -> Iterator[list[Stats]]:
        """Measure every call of the model inside the ``with``: tokens before and after, milliseconds by stage.

        A GPU is synchronised at the borders of the stages. Outside there is no clock, no hook and no synchronisation.

        Yields:
            A list that gets the :class:`Stats` of each call when the call returns; ``stats`` is the latest.

        Raises:
            RuntimeError: the pruning was removed, or is being measured already; from a call: torch.compile left the hooks out.

        Example:
            >>> with pruning.measure():  # doctest: +SKIP
            ...     model.generate(**inputs, max_new_tokens=64)
            >>> print(pruning.stats)  # doctest: +SKIP
        """
        if not self.attached:
            raise RuntimeError("the pruning was removed; measure() before remove()")
        if self._meter is not None:
            raise RuntimeError("the pruning is being measured already; leave that measure() first")
        self._meter = Meter(self.model, self._keep_stats)
        try:
            with self._meter:
                yield self._meter.calls
        finally:
            self._meter = None

    def _keep_stats(self, stats: Stats) -> None:
        self.stats = stats

    # ---------------------------------------------------------------------------------------------- calls of the model

    def _forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.attached:
            return original(*args, **kwargs)
        arguments = named_arguments(original, args, kwargs) if args else kwargs
        counts = self._counts(arguments)
        if not any(counts):
            if _starts(arguments):
                self.last = Record()
                cache.forget(cache.argument(arguments))
            return original(*args, **kwargs)
        call = _CALL.get()
        if call is not None and call.pruning is self:
            # transformers 5 has encoded the images before; 4 does it in here
            with holding(_RECORD, Record() if self._pixels(arguments) else _RECORD.get()):
                return original(*args, **kwargs)
        kinds = self._kinds(arguments, "input_ids", counts)
        held = self._cached(arguments, "input_ids")
        short = self._shorten(arguments, "input_ids", kinds, None)
        placed = self._positions(arguments, "input_ids", kinds, short, generating=False)
        with (
            holding(_RECORD, Record()),
            holding(TEXT, self._text(arguments, "input_ids", kinds, short, counts)),
            holding(POSITIONS, placed),
        ):
            result = original(**short.arguments)
        _remember(arguments, result, held, short, arguments["input_ids"].shape[1])
        return _placed(result, placed)

    def _generate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.attached:
            return original(*args, **kwargs)
        arguments = named_arguments(original, args, kwargs)
        name = "inputs" if arguments.get("inputs") is not None else "input_ids"
        ids, counts = arguments.get(name), self._counts(arguments)
        continues = cache.tokens(cache.argument(arguments)) > 0
        if not continues:
            for used in (cache.argument(arguments), getattr(self.model, "_cache", None)):
                cache.forget(used)  # generate uses a static one again
        if not any(counts):
            self.last = Record()
            if ids is None or arguments.get("inputs_embeds") is not None or not continues:
                return original(*args, **kwargs)

        if ids is not None and arguments.get("attention_mask") is None:
            arguments["attention_mask"] = generation.padding_mask(self.model, arguments, ids)
        kinds = self._kinds(arguments, name, counts) if any(counts) else []
        assert ids is not None  # without ids there are no images, and nothing to shorten
        held, mask = self._cached(arguments, name), arguments.get("attention_mask")
        # the images that the cache holds do not come again; a wider mask means that the text does not, either
        again = continues and (mask is None or mask.shape[1] == ids.shape[1])
        short = self._shorten(arguments, name, kinds, held if again else None)
        placed = self._positions(arguments, name, kinds, short, generating=True)
        text = self._text(arguments, name, kinds, short, counts) if any(counts) else None
        arguments = dict(short.arguments)
        if placed is not None:
            arguments.pop("position_ids", None)  # part of what is placed
        width = arguments[name].shape[1]
        arguments = generation.shift_lengths(self.model, arguments, ids.shape[1], ids.shape[1] - width)
        if arguments.get("streamer") is not None:
            arguments["streamer"] = generation.OriginalPrompt(arguments["streamer"], ids)
        with (
            holding(_CALL, _Call(self, counts)),
            holding(_RECORD, Record()),
            holding(TEXT, text),
            holding(POSITIONS, placed),
            cache.counting(cache.argument(arguments), now=placed is None and "position_ids" not in arguments),
        ):
            result = original(**arguments)
        cache.forget(_filled(arguments, result), cache.COUNTING)
        _remember(short.arguments, result, held, short, ids.shape[1])
        return generation.with_original_prompt(_placed(result, placed), ids, width)

    # ---------------------------------------------------------------------------------------------- the prompt

    def _counts(self, arguments: dict[str, Any]) -> tuple[int, ...]:
        """Images of each kind that come with a call. Pre-encoded ones were pruned by ``get_image_features``."""
        encoded = arguments.get("mm_encoder_outputs") or {}
        counts = []
        for visual in self._visuals:
            given = encoded.get(visual.kind)
            counts.append(visual.count(arguments) if given is None else len(given.pooler_output))
        return tuple(counts)

    def _pixels(self, arguments: dict[str, Any]) -> bool:
        return any(visual.count(arguments) for visual in self._visuals)

    def _kinds(self, arguments: dict[str, Any], name: str, counts: tuple[int, ...]) -> list[Placeholders]:
        """The placeholders of the images of every kind that come with a call."""
        if arguments.get(name) is None or arguments.get("inputs_embeds") is not None:
            raise ValueError(
                "a pruned model finds the image placeholders in input_ids: give input_ids, not inputs_embeds, with images"
            )
        return [visual.placeholders(arguments, name, count) for visual, count in zip(self._visuals, counts, strict=True)]

    def _cached(self, arguments: dict[str, Any], name: str) -> Cached:
        """What the cache of a call holds.

        Raises:
            ValueError: the attention mask counts tokens in front of the prompt that were pruned.
        """
        ids, mask = arguments[name], arguments.get("attention_mask")
        held = cache.recall(cache.argument(arguments), len(ids))
        front, past = 0 if mask is None or mask.dim() != 2 else mask.shape[1] - ids.shape[1], held.columns.shape[1]
        if front == held.whole != past:
            raise ValueError(
                f"attention_mask has {front} columns in front of {name}, but the cache holds {past}: visual tokens that were "
                f"pruned are not in it; give {past} + {ids.shape[1]} columns"
            )
        return held

    def _shorten(self, arguments: dict[str, Any], name: str, kinds: list[Placeholders], held: Cached | None) -> Short:
        pad = generation.option(self.model, arguments, "pad_token_id") or 0
        short = shorten(arguments, name=name, kinds=kinds, pad=pad, cached=held)
        run = running(self.model)
        if run is not None:
            run.prompts = (name, arguments, short.arguments)
        return short

    def _positions(
        self, arguments: dict[str, Any], name: str, kinds: list[Placeholders], short: Short, *, generating: bool
    ) -> Positions | None:
        """The positions of a shortened prompt, where they have gaps."""
        if self.options.positions == "contiguous" or short.columns is None:
            return None
        if (arguments.get("mm_encoder_outputs") or {}).keys() & {visual.kind for visual in self._visuals}:
            raise ValueError(
                "positions = 'original' needs to see the images being encoded: give pixel_values, not mm_encoder_outputs"
            )
        core: Any = self.model.model
        return positions.of_prompt(core.language_model, arguments, name=name, kinds=kinds, short=short, generating=generating)

    def _text(
        self, arguments: dict[str, Any], name: str, kinds: list[Placeholders], short: Short, counts: tuple[int, ...]
    ) -> dict[str, Text] | None:
        """The text around each image of a call, by kind, where the method asks for it."""
        if "prompt" not in self.method.needs:
            return None
        special = getattr(self.method, "special_ids", None)
        special = generation.special_ids(self.model, arguments) if special is None else special
        new = arguments[name][:, 0 if short.cached is None else short.cached.whole :].cpu()
        who, texts = type(self.method).__name__, {}
        for visual, kind, count in zip(self._visuals, kinds, counts, strict=True):
            if not count:
                continue
            texts[visual.kind] = text_of_rows(
                arguments,
                name=name,
                rows=rows_of(new, kind),
                special={*special, *(other.token for other in kinds)},
                pad=generation.option(self.model, arguments, "pad_token_id") or 0,
                who=who,
            )
        return texts

    # ---------------------------------------------------------------------------------------------- for the visuals

    def prompt_of(self, visual: Visual, images: int, device: torch.device) -> dict[str, Tensor]:
        """The prompt captures of ``images`` that are being encoded."""
        text = (TEXT.get() or {}).get(visual.kind)
        if text is None:
            raise ValueError(
                f"{type(self.method).__name__} needs the prompt, which {visual.encode} does not see: call the model or its "
                f"generate, or use vt.HoloV(), vt.Scope() or another method without it"
            )
        repeats = images // len(text.ids)  # transformers 4 repeats the images for every beam, next to each other
        ids, lengths = (x.repeat_interleave(repeats, 0).to(device) for x in (text.ids, text.lengths))
        model: Any = self.model
        table = model.get_input_embeddings()
        with torch.no_grad():  # weights that were offloaded come when they are needed, to where the ids are
            embedded = table(ids if table.weight.is_meta else ids.to(table.weight.device)).to(device)
        return {"prompt": embedded, "prompt_ids": ids, "prompt_lengths": lengths}

    def keep_record(self, visual: Visual, encoding: Encoding) -> None:
        """Write what an encoding kept to the record of the running call."""
        call = _CALL.get()
        given = call.counts[self._visuals.index(visual)] if call is not None and call.pruning is self else 0
        # transformers 4 repeats the images for every beam, next to each other
        repeats = len(encoding.layouts) // given if given else 1
        record = _RECORD.get()
        record = Record() if record is None else record
        placed = POSITIONS.get()
        if placed is not None:
            placed.place(visual.noun, [rank.sort().values for rank in encoding.ranks[::repeats]])
        assert encoding.kept is not None  # the choice was made
        for layout, kept in list(zip(encoding.layouts, encoding.kept, strict=True))[::repeats]:
            record.indices.append(kept.candidates if layout.geometry.crops == 1 else _ascending(kept.candidates))
            record.scores.append(kept.scores)
            record.newlines.append(layout.newlines)
            record.tokens_before.append(layout.before)
            record.tokens_after.append(layout.after)
        self.last = record
        run = running(self.model)
        if run is not None:
            run.record = record


def _starts(arguments: dict[str, Any]) -> bool:
    """Whether a forward begins a prompt. Not certain of one token, or while compiling: no cache is read for a decoding step."""
    held = cache.argument(arguments)
    if held is None or torch.compiler.is_compiling():
        return held is None
    ids = arguments.get("input_ids") if arguments.get("inputs_embeds") is None else arguments["inputs_embeds"]
    return ids is not None and ids.shape[1] > 1 and not cache.tokens(held)


def _filled(arguments: dict[str, Any], result: Any) -> Any:
    """The cache that a call filled, or None where it is not to be seen."""
    held = cache.argument(arguments)
    if held is not None:
        return held
    parts = result if isinstance(result, tuple) else (cache.returned(result),)
    return next((part for part in parts if hasattr(part, "get_seq_length")), None)


def _remember(arguments: dict[str, Any], result: Any, held: Cached, short: Short, length: int) -> None:
    """Note on the cache that a call filled what it holds, with the prompt of ``length`` columns that was shortened."""
    filled = _filled(arguments, result)
    if filled is None or short.columns is None:
        return
    if short.cached is None:
        behind = short.columns.add(held.whole).masked_fill(short.columns < 0, -1)
        cache.remember(filled, torch.cat([held.columns, behind], dim=1), held.whole + length)
    else:
        cache.remember(filled, short.columns, length)


def _placed(result: Any, placed: Positions | None) -> Any:
    """The result, unless the positions never reached the language model.

    Raises:
        RuntimeError: a compiled language model ran without its hooks.
    """
    if placed is not None and not placed.used:
        raise RuntimeError(
            "the language model ran without the pruning's hooks, which hand it the original positions, because torch.compile "
            "left them out: take positions = 'contiguous', leave the language model uncompiled, or set "
            "torch._dynamo.config.skip_nnmodule_hook_guards = False first"
        )
    return result


def _ascending(candidates: Tensor) -> Tensor:
    """Sorted, with -1 (a zero vector) at the end."""
    last = torch.iinfo(candidates.dtype).max
    ordered = candidates.masked_fill(candidates < 0, last).sort().values
    return ordered.masked_fill(ordered == last, -1)


@contextmanager
def holding(variable: ContextVar[_T], value: _T) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
