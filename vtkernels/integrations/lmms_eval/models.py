"""lmms-eval's own Hugging Face LLaVA, pruned: images, prompts, decoding and scores are its stock code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from lmms_eval.models.chat.llava_hf import LlavaHf as ChatLlavaHf
from lmms_eval.models.simple.llava_hf import LlavaHf as SimpleLlavaHf
from loguru import logger

from vtkernels._version import __version__
from vtkernels.integrations import prune
from vtkernels.integrations.lmms_eval import arguments

if TYPE_CHECKING:  # what super() finds at run time is the base class beside
    from lmms_eval.models.simple.llava_hf import LlavaHf as _Beside
else:
    _Beside = object


class _Pruned(_Beside):
    """Prunes the model that the other base class loads.

    Args:
        method: a method of this package by name, such as ``scope``; its options (``alpha=0.5``) stand beside it.
        keep, budget, positions, newlines, padding: as of ``vt.prune``.
        others: arguments of lmms-eval's ``llava_hf``, such as ``pretrained``.

    Attributes:
        pruning: what ``vt.prune`` returned.
        kept: visual tokens before and after, of every image since the model was made.

    Raises:
        ValueError: there is no such method or option, or ``vt.prune`` refuses a value.
    """

    def __init__(
        self,
        method: str | None = None,
        keep: int | float | None = None,
        budget: str | None = None,
        positions: str | None = None,
        newlines: str | None = None,
        padding: str | None = None,
        device: str = "cuda",
        device_map: str = "",
        **others: Any,
    ) -> None:
        made, others = arguments.method_of(method, others)
        keep = arguments.check_keep(keep)
        taken = set(inspect.signature(SimpleLlavaHf.__init__).parameters) - {"self", "kwargs"}
        arguments.check_rest(others, taken, made)
        if device_map == "" and PartialState().num_processes == 1:
            device_map = device  # transformers 5 refuses the empty name that lmms-eval would hand on
        super().__init__(device=device, device_map=device_map, **others)
        self.kept: list[tuple[int, int]] = []
        self._failed: Exception | None = None
        self.pruning = prune(self.model, made, keep, budget=budget, positions=positions, newlines=newlines, padding=padding)
        self.model.generate = functools.partial(self._generate, self.model.generate)
        logger.info(f"vtkernels {__version__}: {made}, keep={keep}")

    def generate_until(self, requests: list[Any]) -> list[Any]:
        """Answers as of llava_hf, which turns an error into an empty answer; here it ends the run.

        Raises:
            RuntimeError: a call of the model failed.
        """
        start = len(self.kept)
        answers: list[Any] = super().generate_until(requests)
        if self._failed is not None:
            raise RuntimeError(
                f"the pruned model failed ({self._failed}); lmms-eval would have scored empty answers"
            ) from self._failed
        if self.rank == 0:
            logger.info(f"vtkernels: {_summary(self.kept[start:])}")
        return answers

    def loglikelihood(self, requests: list[Any]) -> list[Any]:
        """Refused: lmms-eval looks up logits by their place in the prompt, which is shorter here."""
        raise NotImplementedError(
            "llava_hf_vtkernels answers generate_until tasks only: lmms-eval's loglikelihood counts places of the whole prompt"
        )

    def clean(self) -> None:
        """Let go of the model, when lmms-eval is done with it."""
        self.__dict__.pop("pruning").remove()
        super().clean()

    def _generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._failed is not None:  # the run ends anyway
            raise self._failed
        try:
            result = original(*args, **kwargs)
        except Exception as error:
            self._failed = error
            raise
        last = self.pruning.last
        self.kept += zip(last.tokens_before, last.tokens_after, strict=True)
        return result


class PrunedLlavaHf(_Pruned, SimpleLlavaHf):
    """``llava_hf`` for tasks without messages, and with ``--force_simple``."""


class PrunedLlavaHfChat(_Pruned, ChatLlavaHf):
    """``llava_hf`` as lmms-eval takes it by default."""


def _summary(kept: list[tuple[int, int]]) -> str:
    """``"3 images, visual tokens 576 -> 64 each"``, or the range where images differ."""
    if not kept:
        return "no images"
    before, after = (
        f"{min(side)}" if len(set(side)) == 1 else f"{min(side)} to {max(side)}" for side in zip(*kept, strict=True)
    )
    return f"{len(kept)} images, visual tokens {before} -> {after} each"
