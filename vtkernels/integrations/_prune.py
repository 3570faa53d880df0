"""The way in: whatever code base a model comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vtkernels.integrations.original import OriginalPruning, recognises
from vtkernels.integrations.transformers import visuals_of
from vtkernels.integrations.transformers.options import resolve
from vtkernels.integrations.transformers.pruning import MARK, Pruning
from vtkernels.methods import Method

if TYPE_CHECKING:
    from torch import nn


def prune(
    model: nn.Module,
    method: Method,
    keep: int | float,
    *,
    budget: str | None = None,
    positions: str | None = None,
    newlines: str | None = None,
    padding: str | None = None,
) -> Pruning:
    """Prune the visual tokens of a stock model from now on, in ``forward`` and in ``generate``.

    The method chooses ``keep`` of the N patch tokens of every image (or video) between the vision tower and the projector
    (behind the projector, if it needs projected tokens; on LLaVA-OneVision always, because that model pools there); the
    language model gets a prompt with as many placeholders fewer. Hooks and wrapped attributes go on this instance only.

    Args:
        model: a ``LlavaForConditionalGeneration``, ``LlavaNextForConditionalGeneration``,
            ``LlavaNextVideoForConditionalGeneration``, ``LlavaOnevisionForConditionalGeneration``,
            ``VideoLlavaForConditionalGeneration`` or ``VipLlavaForConditionalGeneration``, or a model of the original LLaVA
            code base (``llava-torch``), known by its members. Of a PEFT model the one inside is pruned.
        method: ``vt.Scope()``, ``vt.FoPru()``, ``vt.GPrune()``, ``vt.HoloV()``, ``vt.PAR()``, ``vt.TopAttention()``,
            ``vt.Random(seed)``, ``vt.Uniform()``, or any object with ``needs`` and ``select`` (see
            :class:`vtkernels.methods.Method`).
        keep: patch tokens per image (int >= 1), or a fraction of its candidates in (0, 1], rounded to the nearest unless the
            method's docstring says otherwise; of a video, all frames together. No image gets more tokens than it has in the
            whole prompt: where it may have fewer than ``keep``, those are all that are kept, with a warning. Class tokens that
            the model passes on are kept on top, and so are newlines.
        budget: how crops, tiles and frames share ``keep``: ``"per_crop"`` in equal parts (what is left goes to the first),
            ``"joint"`` as one set, ``"per_branch"`` base crop and grid in proportion to their sizes. LLaVA-OneVision pools the
            tiles of an image into one grid, so there ``"per_crop"`` is for frames alone.
        positions: of the kept tokens in the language model: ``"contiguous"``, or ``"original"``, those of the whole prompt.
        newlines: the newline tokens of LLaVA-NeXT's rows: ``"keep"`` all or ``"drop"`` all. One that ends an image without
            tiles or a video stays.
        padding: patches of the border that fills up LLaVA-NeXT's tiles, as candidates: ``"include"`` or ``"exclude"``.

    ``budget``, ``positions``, ``newlines`` and ``padding`` default to what the method's source does (its ``policy``); they mean
    nothing to a model without crops, newlines or padding.

    Returns:
        The :class:`Pruning`: ``last`` is what the latest prefill kept, ``measure()`` and ``stats`` say what calls cost,
        ``remove()`` restores the model; also a context manager.

    Raises:
        TypeError: the class of the model or of its vision tower is not supported, or ``method`` or ``keep`` is of a wrong type.
        ValueError: ``keep`` is out of range or not a number of tokens that the method can keep, an option is unknown or has no
            meaning for the method or the model, or the method needs what the model does not have.
        RuntimeError: the model is pruned already.
        ImportError: transformers is missing or outside the supported range.

    Example:
        >>> pruning = vt.prune(model, vt.Scope(), keep=64)  # doctest: +SKIP
        >>> out = model.generate(**processor(images=image, text=prompt, return_tensors="pt"))  # doctest: +SKIP
        >>> pruning.last.indices  # doctest: +SKIP
    """
    inside: Any = getattr(model, "get_base_model", None)
    if inside is not None:  # PEFT
        model = inside()
    original = recognises(model)
    visuals = () if original else visuals_of(model)
    if isinstance(method, type):
        raise TypeError(f"method must be an instance, got the class {method.__name__}; write {method.__name__}()")
    if not isinstance(method, Method):
        raise TypeError(f"method must have `needs` and `select(context, k)` like vt.Scope(), got {type(method).__name__}")
    if MARK in vars(model):
        other = type(vars(model)[MARK].method).__name__
        raise RuntimeError(
            f"the model is pruned already (by {other}); call remove() on the Pruning that vt.prune returned first"
        )
    options = resolve(method, budget=budget, positions=positions, newlines=newlines, padding=padding)
    if original:
        return OriginalPruning(model, method, keep, options).attach()
    return Pruning(model, method, keep, options, visuals).attach()
