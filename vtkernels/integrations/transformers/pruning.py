"""A pruned model: what ``vt.prune`` returns, and the part that is the same for every family of models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from dataclasses import dataclass, field
from numbers import Integral, Real
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vtkernels.integrations.transformers import generation
from vtkernels.integrations.transformers.attach import Attachments, named_arguments
from vtkernels.integrations.transformers.prompt import Text, shorten, text_of_images
from vtkernels.methods import Context, Method, Selection

MARK = "_vtkernels_pruning"


@dataclass(frozen=True)
class Record:
    """What one prefill kept, one entry per image in the order of the images.

    Attributes:
        indices: int64 [k], kept candidates, ascending; a class token is not counted.
        scores: float32 [N] over all candidates, or None where the method has none.
        newlines: newline tokens kept (0 on models without them).
        tokens_before: visual tokens in the prompt.
        tokens_after: visual tokens that the language model saw.
    """

    indices: list[Tensor] = field(default_factory=list)
    scores: list[Tensor | None] = field(default_factory=list)
    newlines: list[int] = field(default_factory=list)
    tokens_before: list[int] = field(default_factory=list)
    tokens_after: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Call:
    """A running ``generate``: its forwards get a prompt that is already short."""

    pruning: Pruning
    images: int | None


_CALL: ContextVar[_Call | None] = ContextVar("vtkernels_generate", default=None)
# What the running forward or generate has to say about its images, where the method asks for the prompt.
_TEXT: ContextVar[Text | None] = ContextVar("vtkernels_text", default=None)


class Pruning(ABC):
    """A model with pruning attached. Made by :func:`vtkernels.prune`; a context manager that removes the pruning at its end.

    Attributes:
        model: the model, pruned in place.
        method: the method that chooses.
        keep: tokens per image or fraction, as given.
        last: the :class:`Record` of the latest prefill (with ``generate``: of its prefill; without images: empty lists).

    ``forward`` returns logits of the shortened prompt. Logits processors and stopping criteria of ``generate`` see the
    shortened ids; ``max_length``, ``min_length``, a streamer and the returned sequences speak of the original ones.
    """

    def __init__(self, model: nn.Module, method: Method, keep: int | float) -> None:
        self.model = model
        self.method = method
        self.keep = keep
        self.last = Record()
        self._attachments = Attachments()

    @abstractmethod
    def _sizes(self, arguments: dict[str, Any], ids: Tensor, images: int | None) -> tuple[list[int], list[int]]:
        """Visual tokens of each image in the prompt, before and after pruning; ``images`` None: as many as ``ids`` holds."""

    @abstractmethod
    def _attach(self) -> None:
        """Hook and wrap what the family needs. Runs after every check."""

    def attach(self) -> Pruning:
        """Attach to the model, wholly or not at all."""
        try:
            self._attachments.hook(self.model.register_forward_pre_hook, self._before_forward, with_kwargs=True)
            self._attachments.wrap(self.model, "generate", self._generate)
            if "prompt" in self.method.needs:
                self._attachments.hook(self.model.register_forward_hook, self._after_forward, always_call=True)
            self._attach()
        except BaseException:
            self.remove()
            raise
        vars(self.model)[MARK] = self
        return self

    def remove(self) -> None:
        """Restore the model. Twice is harmless."""
        self._attachments.undo()
        if vars(self.model).get(MARK) is self:
            del vars(self.model)[MARK]

    def __enter__(self) -> Pruning:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    @property
    def _attached(self) -> bool:
        return vars(self.model).get(MARK) is self

    def _before_forward(self, model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        arguments = named_arguments(model.forward, args, kwargs) if args else kwargs
        images = _images(arguments)
        if images is None:
            if arguments.get("past_key_values") is None:  # not a decoding step
                self.last = Record()
            return None
        call = _CALL.get()
        if call is not None and call.pruning is self:
            return None
        short = self._shorten(arguments, "input_ids", images)
        _TEXT.set(self._text(arguments, "input_ids", images))
        return (), short

    def _after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        call = _CALL.get()
        if call is None or call.pruning is not self:
            _TEXT.set(None)

    def _generate(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._attached:
            return original(*args, **kwargs)
        arguments = named_arguments(original, args, kwargs)
        name = "inputs" if arguments.get("inputs") is not None else "input_ids"
        ids, images = arguments.get(name), _images(arguments)
        continues = _continues(arguments)
        if images is None:
            self.last = Record()
            if ids is None or arguments.get("inputs_embeds") is not None or not continues:
                return original(*args, **kwargs)

        if ids is not None and arguments.get("attention_mask") is None:
            arguments["attention_mask"] = generation.padding_mask(self.model, arguments, ids)
        # a cache that is continued holds images of the prompt that do not come again
        short = self._shorten(arguments, name, None if continues else images)
        width = short[name].shape[1]
        short = generation.shift_lengths(self.model, short, ids.shape[1], ids.shape[1] - width)
        if short.get("streamer") is not None:
            short["streamer"] = generation.OriginalPrompt(short["streamer"], ids)
        text = _TEXT.set(None if images is None else self._text(arguments, name, images))
        token = _CALL.set(_Call(self, images))
        try:
            result = original(**short)
        finally:
            _CALL.reset(token)
            _TEXT.reset(text)
        return generation.with_original_prompt(result, ids, width)

    def _shorten(self, arguments: dict[str, Any], name: str, images: int | None) -> dict[str, Any]:
        ids = arguments.get(name)
        if ids is None or arguments.get("inputs_embeds") is not None:
            raise ValueError(
                "a pruned model finds the image placeholders in input_ids: give input_ids, not inputs_embeds, with images"
            )
        before, after = self._sizes(arguments, ids, images)
        pad = generation.option(self.model, arguments, "pad_token_id") or 0
        return shorten(arguments, name=name, token=self.model.config.image_token_id, before=before, after=after, pad=pad)

    def _budget(self, candidates: int, grid: tuple[int, int] | None) -> int:
        """Tokens to keep of ``candidates``.

        Raises:
            TypeError: ``keep`` is not a number.
            ValueError: ``keep`` is out of range, or the method cannot keep that many.
        """
        k = budget(self.keep, candidates)
        own = getattr(self.method, "kept_tokens", None)
        if own is None:
            return k
        k = own(self.keep, candidates, grid)
        if not 1 <= k <= candidates:
            raise ValueError(f"{type(self.method).__name__}.kept_tokens must be between 1 and {candidates}, got {k}")
        return k

    def _text(self, arguments: dict[str, Any], name: str, images: int) -> Text | None:
        """The text around each image of a call, where the method asks for it."""
        if "prompt" not in self.method.needs:
            return None
        special = getattr(self.method, "special_ids", None)
        ids = arguments[name]
        return text_of_images(
            arguments,
            name=name,
            token=self.model.config.image_token_id,
            before=self._sizes(arguments, ids, None)[0],
            images=images,
            special=generation.special_ids(self.model, arguments) if special is None else special,
            pad=generation.option(self.model, arguments, "pad_token_id") or 0,
            who=type(self.method).__name__,
        )

    def _prompt(self, batch: int, device: torch.device) -> dict[str, Tensor]:
        """The prompt captures of ``batch`` images that are being encoded."""
        text = _TEXT.get()
        if text is None:
            raise ValueError(
                f"{type(self.method).__name__} needs the prompt, which get_image_features does not see: call the model or its "
                f"generate, or use vt.HoloV(), vt.Scope() or another method without it"
            )
        repeats = batch // len(text.ids)  # transformers 4 repeats the images for every beam, next to each other
        ids, lengths = (x.repeat_interleave(repeats, 0).to(device) for x in (text.ids, text.lengths))
        table = self.model.get_input_embeddings()
        with torch.no_grad():
            embedded = table(ids.to(table.weight.device)).to(device)
        return {"prompt": embedded, "prompt_ids": ids, "prompt_lengths": lengths}

    def _select(self, context: Context, k: int) -> Selection:
        """The method's answer, checked as far as it can be without reading it."""
        with torch.no_grad():
            selection = self.method.select(context, k)
        who = f"{type(self.method).__name__}.select"
        indices = getattr(selection, "indices", None)
        if not isinstance(indices, Tensor):
            raise TypeError(f"{who} must return vt.Selection(indices, scores), got {type(selection).__name__}")
        if indices.dtype != torch.int64 or indices.shape != (context.batch, k):
            raise ValueError(
                f"{who} must return int64 indices of shape {[context.batch, k]}, got {indices.dtype} {list(indices.shape)}"
            )
        assignment = getattr(selection, "assignment", None)
        if assignment is not None and (assignment.dtype != torch.int64 or assignment.shape != (context.batch, context.tokens)):
            raise ValueError(
                f"{who} must return an int64 assignment of shape {[context.batch, context.tokens]} or None, got "
                f"{assignment.dtype} {list(assignment.shape)}"
            )
        return selection

    def _keep_record(self, selection: Selection, before: int, after: int) -> None:
        call = _CALL.get()
        batch = selection.indices.shape[0]
        # transformers 4 repeats the images for every beam, next to each other
        repeats = batch // call.images if call is not None and call.pruning is self and call.images else 1
        images = batch // repeats
        self.last = Record(
            indices=list(selection.indices[::repeats]),
            scores=[None] * images if selection.scores is None else list(selection.scores[::repeats]),
            newlines=[0] * images,
            tokens_before=[before] * images,
            tokens_after=[after] * images,
        )


def budget(keep: int | float, candidates: int) -> int:
    """Tokens to keep of ``candidates``: an integer as it is, a fraction rounded to the nearest and at least 1.

    Raises:
        TypeError: ``keep`` is not a number.
        ValueError: ``keep`` is out of range.
    """
    if isinstance(keep, bool) or not isinstance(keep, Real):
        raise TypeError(f"keep must be an int >= 1 or a fraction in (0, 1], got {keep!r}")
    if isinstance(keep, Integral):
        if not 1 <= keep <= candidates:
            raise ValueError(
                f"keep = {keep} must be between 1 and the {candidates} patch tokens that this model has per image, or a "
                f"fraction in (0, 1]"
            )
        return int(keep)
    if not 0 < keep <= 1:
        raise ValueError(f"keep = {keep} must be a fraction in (0, 1], or an int from 1 to {candidates} (tokens per image)")
    return max(1, int(keep * candidates + 0.5))


def _images(arguments: dict[str, Any]) -> int | None:
    """Images that come with a call; None where it has none. Pre-encoded ones were pruned by ``get_image_features``."""
    if arguments.get("pixel_values") is not None:
        return len(arguments["pixel_values"])
    encoded = (arguments.get("mm_encoder_outputs") or {}).get("image")
    return None if encoded is None else len(encoded.pooler_output)


def _continues(arguments: dict[str, Any]) -> bool:
    """Whether ``generate`` continues a cache, which holds the start of the prompt already."""
    length = getattr(arguments.get("past_key_values"), "get_seq_length", None)
    return length is not None and int(length()) > 0
