"""Hugging Face transformers, 4.57 to 5.x. Nothing here imports transformers before :func:`prune` is called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vtkernels.integrations.transformers.llava import LlavaPruning
from vtkernels.integrations.transformers.pruning import MARK, Pruning, Record
from vtkernels.methods import Method

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Pruning", "Record", "prune"]

# Class of the model -> what prunes it.
_FAMILIES = {"LlavaForConditionalGeneration": LlavaPruning}
_OLDEST, _BELOW = (4, 57), (6, 0)


def prune(model: nn.Module, method: Method, keep: int | float) -> Pruning:
    """Prune the visual tokens of a stock model from now on, in ``forward`` and in ``generate``.

    The method chooses ``keep`` of the N patch tokens of every image between the vision tower and the projector (behind the
    projector, if it needs projected tokens); the language model gets a prompt with as many placeholders fewer. Hooks and
    wrapped attributes go on this instance only.

    Args:
        model: a ``LlavaForConditionalGeneration``.
        method: ``vt.Scope()``, ``vt.FoPru()``, ``vt.GPrune()``, ``vt.HoloV()``, ``vt.PAR()``, ``vt.TopAttention()``,
            ``vt.Random(seed)``, ``vt.Uniform()``, or any object with ``needs`` and ``select`` (see
            :class:`vtkernels.methods.Method`).
        keep: patch tokens per image (int >= 1), or a fraction of them in (0, 1], rounded to the nearest unless the method's
            docstring says otherwise. A class token that the model passes on (select strategy "full") is kept on top.

    Returns:
        The :class:`Pruning`: ``last`` is what the latest prefill kept, ``remove()`` restores the model; also a context
        manager.

    Raises:
        TypeError: the class of the model or of its vision tower is not supported, or ``method`` or ``keep`` is of a wrong type.
        ValueError: ``keep`` is out of range or not a number of tokens that the method can keep, or the method needs what the
            model does not have.
        RuntimeError: the model is pruned already.
        ImportError: transformers is missing or outside the supported range.

    Example:
        >>> pruning = vt.prune(model, vt.Scope(), keep=64)  # doctest: +SKIP
        >>> out = model.generate(**processor(images=image, text=prompt, return_tensors="pt"))  # doctest: +SKIP
        >>> pruning.last.indices  # doctest: +SKIP
    """
    family = _family(model)
    if isinstance(method, type):
        raise TypeError(f"method must be an instance, got the class {method.__name__}; write {method.__name__}()")
    if not isinstance(method, Method):
        raise TypeError(f"method must have `needs` and `select(context, k)` like vt.Scope(), got {type(method).__name__}")
    if MARK in vars(model):
        other = type(vars(model)[MARK].method).__name__
        raise RuntimeError(
            f"the model is pruned already (by {other}); call remove() on the Pruning that vt.prune returned first"
        )
    return family(model, method, keep).attach()


def _family(model: nn.Module) -> type[Pruning]:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("vt.prune needs transformers: pip install 'vtkernels[hf]'") from error
    version = transformers.__version__
    if not _OLDEST <= tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _BELOW:
        raise ImportError(f"vt.prune supports transformers 4.57 to 5.x, found {version}: pip install 'transformers>=4.57,<6'")
    for name, family in _FAMILIES.items():
        if isinstance(model, getattr(transformers, name)):
            return family
    raise TypeError(
        f"vt.prune does not support {type(model).__name__}; supported: {', '.join(_FAMILIES)}. Of a wrapped model (PEFT, "
        f"torch.compile, DataParallel) prune the one inside, before wrapping it"
    )
