"""The models of ``vtkernels flops``: presets, and the config of a checkpoint."""

from __future__ import annotations

import json

from vtkernels.cli._errors import UsageError, first_line, require
from vtkernels.flops import Llava, Transformer

_CLIP_L = Transformer(layers=24, width=1024, heads=16, kv_heads=16, head_dim=64, intermediate=4096, gated=False)
_VICUNA_7B = Transformer(layers=32, width=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008, gated=True)
_VICUNA_13B = Transformer(layers=40, width=5120, heads=40, kv_heads=40, head_dim=128, intermediate=13824, gated=True)
_LLAMA3_8B = Transformer(layers=32, width=4096, heads=32, kv_heads=8, head_dim=128, intermediate=14336, gated=True)
_TYPES = ("llava", "llava_next")


def _llava(text: Transformer, vocabulary: int, *, anyres: bool = False) -> Llava:
    """CLIP-L/14 at 336 pixels with a language model; anyres on a picture that fills 2 x 2 crops."""
    crops, newlines = (5, 48) if anyres else (1, 0)
    return Llava(_CLIP_L, text, 576, 14, features=1024, vocabulary=vocabulary, crops=crops, newlines=newlines)


# Names people know -> the checkpoint's name and its sizes, as its config on the hub gives them.
PRESETS = {
    "llava-1.5-7b": ("LLaVA-1.5-7B", _llava(_VICUNA_7B, 32064)),
    "llava-1.5-13b": ("LLaVA-1.5-13B", _llava(_VICUNA_13B, 32064)),
    "llava-next-7b": ("LLaVA-NeXT-7B (Vicuna)", _llava(_VICUNA_7B, 32064, anyres=True)),
    "llava-next-8b": ("LLaVA-NeXT-8B (Llama 3)", _llava(_LLAMA3_8B, 128320, anyres=True)),
}


def preset(given: str) -> tuple[str, Llava]:
    """Title and sizes of a model by name."""
    known = PRESETS.get(given.lower())
    if known is None:
        choices = ", ".join(PRESETS)
        raise UsageError(f"argument --model: {given!r} is no preset; choose from {choices}, or give --config a config.json")
    return known


def from_file(path: str) -> tuple[str, Llava]:
    """Title and sizes of the checkpoint whose ``config.json`` this is. Reads this file alone, never the hub."""
    require("argument --config", "hf", "transformers")
    from transformers import AutoConfig

    fix = "give the config.json of a LLaVA checkpoint"
    try:
        with open(path, encoding="utf-8") as file:
            fields = json.load(file)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UsageError(f"argument --config: {path!r} cannot be read ({reason}); {fix}") from None
    except ValueError as error:
        raise UsageError(f"argument --config: {path!r} is not JSON ({first_line(error)}); {fix}") from None
    kind = fields.pop("model_type", None) if isinstance(fields, dict) else None
    if kind not in _TYPES:
        raise UsageError(f"argument --config: {path!r} is of model_type {kind!r}, not {' or '.join(_TYPES)}; {fix}")
    try:
        config = AutoConfig.for_model(kind, **fields)
        tower, model = config.vision_config.model_type, Llava.from_config(config)
    except Exception as error:  # whatever the validation of the installed transformers raises
        raise UsageError(f"argument --config: {path!r} lacks the sizes of a LLaVA ({first_line(error)}); {fix}") from None
    if tower != "clip_vision_model":
        raise UsageError(f"argument --config: {path!r} has a {tower!r}; give one with a 'clip_vision_model'")
    return path, model
