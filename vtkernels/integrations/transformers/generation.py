"""What ``generate``'s caller sees: lengths, streamer and returned sequences all speak of the original prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def option(model: nn.Module, arguments: dict[str, Any], name: str) -> Any:
    """A generation option as ``generate`` resolves it: keyword, then ``generation_config``, then the model's own."""
    own: Any = model.generation_config
    unset = (None, getattr(type(own)(), name))  # a default value counts as not given
    for source in (arguments.get("generation_config"), own):
        if arguments.get(name) is not None:
            return arguments[name]
        if source is not None and getattr(source, name) not in unset:
            return getattr(source, name)
    return None


def special_ids(model: nn.Module, arguments: dict[str, Any]) -> set[int]:
    """Ids of the padding, start and end tokens, as the generation options and the language model's config name them."""
    config: Any = model.config
    found: set[int] = set()
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        for value in (option(model, arguments, name), getattr(config.get_text_config(), name, None)):
            found.update(value if isinstance(value, (list, tuple)) else [] if value is None else [value])
    return found


def padding_mask(model: nn.Module, arguments: dict[str, Any], ids: Tensor) -> Tensor | None:
    """The attention mask that ``generate`` infers from padding ids when it is given none, or None where it infers none."""
    pad, end = option(model, arguments, "pad_token_id"), option(model, arguments, "eos_token_id")
    if pad is None or pad in (end if isinstance(end, (list, tuple)) else [end]):
        return None
    return ids.ne(pad).long()


def shift_lengths(model: nn.Module, arguments: dict[str, Any], length: int, removed: int) -> dict[str, Any]:
    """``max_length`` and ``min_length`` of a prompt of ``length`` tokens for the prompt that is ``removed`` tokens shorter.

    Raises:
        ValueError: ``max_length`` leaves no room behind the original prompt.
    """
    shifted: dict[str, int] = {}
    if not removed:
        return arguments
    for name, relative in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        total = option(model, arguments, name)
        if not total or option(model, arguments, relative) is not None:
            continue
        if name == "max_length" and total <= length:
            raise ValueError(
                f"max_length = {total} leaves no room behind a prompt of {length} tokens (visual tokens before pruning "
                f"included); raise max_length or give max_new_tokens"
            )
        shifted[name] = max(total - removed, 0)
    return arguments | shifted


class OriginalPrompt:
    """A streamer in front of the caller's: the first ``put`` is the prompt, and the caller gets the original one."""

    def __init__(self, streamer: Any, ids: Tensor) -> None:
        self._streamer = streamer
        self._prompt: Tensor | None = ids

    def put(self, value: Tensor) -> None:
        if self._prompt is not None:
            value, self._prompt = _repeat(self._prompt, value).to(value.device), None
        self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def with_original_prompt(result: Any, ids: Tensor, width: int) -> Any:
    """``generate``'s result with the ``width`` leading ids of every sequence replaced by the original prompt."""
    sequences = result if isinstance(result, Tensor) else result.sequences
    prompt = _repeat(ids, sequences).to(sequences.device)
    sequences = torch.cat([prompt, sequences[:, width:]], dim=1)
    if isinstance(result, Tensor):
        return sequences
    result.sequences = sequences
    return result


def _repeat(ids: Tensor, like: Tensor) -> Tensor:
    """``num_return_sequences`` rows for every row of the prompt, next to each other."""
    return ids.repeat_interleave(like.shape[0] // ids.shape[0], dim=0)
