"""The demo's model: a LLaVA with random weights that any machine can build, or a checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import huggingface_hub
import torch
import transformers
from PIL import Image
from torch import Tensor

from vtkernels.cli import _picture
from vtkernels.cli._errors import UsageError, first_line

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
_BOS, _IMAGE, _VOCABULARY = 256, 257, 320  # a prompt is its UTF-8 bytes
KINDS: dict[str, Any] = {  # classes whose configs have nothing in common
    "llava": transformers.LlavaForConditionalGeneration,
    "llava_next": transformers.LlavaNextForConditionalGeneration,
}


@dataclass(frozen=True)
class Geometry:
    """Sizes of the random model. The visual side is CLIP-L/14-336 as LLaVA-1.5 has it, except for its depth."""

    image: int = 336
    patch: int = 14
    vision_width: int = 1024
    vision_heads: int = 16
    vision_layers: int = 3
    text_width: int = 1024
    text_heads: int = 16
    text_layers: int = 6
    text_ffn: int | None = None  # 11/4 of the width, as Llama-7B has it but for a rounding
    vocabulary: int = _VOCABULARY
    image_token: int = _IMAGE
    kind: str = "llava"  # or "llava_next": a base crop and 2 x 2 tiles

    def config(self) -> Any:
        """The config of a model of these sizes."""
        return KINDS[self.kind].config_class(
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=self.vision_width,
                intermediate_size=4 * self.vision_width,
                num_hidden_layers=self.vision_layers,
                num_attention_heads=self.vision_heads,
                image_size=self.image,
                patch_size=self.patch,
            ),
            text_config=transformers.LlamaConfig(
                hidden_size=self.text_width,
                intermediate_size=self.text_ffn or 11 * self.text_width // 4,
                num_hidden_layers=self.text_layers,
                num_attention_heads=self.text_heads,
                num_key_value_heads=self.text_heads,
                vocab_size=self.vocabulary,
                max_position_embeddings=4096,
                bos_token_id=_BOS,
                eos_token_id=None,  # decoding runs to its full length, so every method decodes as many tokens
                pad_token_id=0,
            ),
            image_token_index=self.image_token,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            **({"image_grid_pinpoints": [[2 * self.image, 2 * self.image]]} if self.kind == "llava_next" else {}),
        )


@dataclass(frozen=True)
class Subject:
    """A model with one prompt and one picture, ready to run.

    ``picture`` is what the tower saw, cut into ``side`` x ``side`` patches; ``decode`` turns the ids that ``generate`` returns
    into the answer, None where the weights are random and text would mean nothing.
    """

    name: str
    model: Any
    inputs: dict[str, Tensor]
    picture: Image.Image
    side: int
    decode: Callable[[Tensor], str] | None

    @property
    def visual_tokens(self) -> int:
        """Tokens of the unpruned prompt that stand for the picture."""
        return int((self.inputs["input_ids"] == self.model.config.image_token_id).sum())

    @property
    def text_tokens(self) -> int:
        """The other tokens of the prompt."""
        return self.inputs["input_ids"].numel() - self.visual_tokens


def random_model(
    geometry: Geometry, image: Image.Image, prompt: str, *, seed: int, dtype: torch.dtype, device: torch.device
) -> Subject:
    """A seeded LLaVA without a checkpoint, a tokenizer or a network."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(seed)
        model: Any = KINDS[geometry.kind](geometry.config())
    model = model.to(device=device, dtype=dtype).eval()
    model.generation_config.pad_token_id = 0

    side = geometry.image // geometry.patch
    picture = _picture.centre_square(image, geometry.image)
    ids = [_BOS, *b"USER: ", *[_IMAGE] * side**2, *f"\n{prompt} ASSISTANT:".encode()]
    input_ids = torch.tensor([ids], device=device)
    inputs = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "pixel_values": _picture.normalise(picture, MEAN, STD).to(device=device, dtype=dtype),
    }
    name = (
        f"LLaVA with random weights (seed {seed}): CLIP-L/14-336 sizes cut to {geometry.vision_layers} layers"
        if geometry == Geometry()
        else f"LLaVA with random weights (seed {seed}), {geometry.image} px, {geometry.vision_layers} vision layers"
    )
    return Subject(f"{name}, {geometry.text_layers}-layer language model", model, inputs, picture, side, None)


def checkpoint_config(path: str, *, trust_remote_code: bool, kinds: Sequence[str] = ("llava",)) -> Any:
    """A checkpoint's config, read before anything large is; a model of another kind is an error."""
    if not os.path.exists(path) and (path.startswith((".", "/", "~")) or path.count("/") > 1):
        raise UsageError(f"argument --model: the folder {path!r} does not exist; give one, or the name of a model on the hub")
    with _explained(path, trust_remote_code):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if config.model_type not in kinds:
        names = " or ".join(repr(kind) for kind in kinds)
        raise UsageError(f"argument --model: {path!r} is a {config.model_type!r} model; give one of type {names}")
    return config


def checkpoint(
    path: str, image: Image.Image, prompt: str, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
) -> Subject:
    """A LLaVA from a folder or the hub, with its own processor."""
    with _explained(path, trust_remote_code):
        processor = transformers.AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)
    model = checkpoint_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = processor.tokenizer.eos_token_id

    if processor.image_token in prompt:
        raise UsageError(f"argument --prompt: {prompt!r} holds the image placeholder {processor.image_token!r}; leave it out")
    inputs = processor(images=image, text=_chat(processor, prompt), return_tensors="pt").to(device, dtype)
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    picture = _picture.seen(inputs["pixel_values"][0], mean, std)
    prompt_length = inputs["input_ids"].shape[1]

    def decode(sequence: Tensor) -> str:
        answer: str = processor.tokenizer.decode(sequence[prompt_length:], skip_special_tokens=True)
        return answer.strip()

    return Subject(path, model, dict(inputs), picture, side_of(model.config), decode)


def checkpoint_model(path: str, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Any:
    """The model of a checkpoint, without its processor."""
    with _explained(path, trust_remote_code):
        model: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model.to(device).eval()


def side_of(config: Any) -> int:
    """Patches along one side of the picture."""
    side: int = config.vision_config.image_size // config.vision_config.patch_size
    return side


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the notes and bars of transformers and the hub out of the progress line."""
    loggers = (transformers.utils.logging, huggingface_hub.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
        transformers.utils.logging.enable_progress_bar()


@contextmanager
def _explained(path: str, trust_remote_code: bool) -> Iterator[None]:
    """A checkpoint that cannot be loaded is an argument that does not work."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # whatever transformers, the hub, safetensors and the unpickler raise at a broken checkpoint
        fix = "give a folder with a LLaVA checkpoint or the name of one on the hub"
        if "trust_remote_code" in str(error) and not trust_remote_code:
            fix = "it brings its own code; add --trust-remote-code if you trust it"
        elif isinstance(error, pickle.UnpicklingError):
            fix = "its weights are a pickle of more than tensors, which could run code; give a checkpoint in safetensors"
        raise UsageError(f"argument --model: {path!r} cannot be loaded ({first_line(error)}); {fix}") from None


def _chat(processor: Any, prompt: str) -> str:
    """The prompt in the checkpoint's own chat format, or in LLaVA-1.5's where it brings none."""
    if not getattr(processor, "chat_template", None):
        return f"USER: <image>\n{prompt} ASSISTANT:"
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text
