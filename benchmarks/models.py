"""The models of the model-level benchmark: real layer shapes with random weights, or a checkpoint; and what they are fed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtkernels.cli import _model, _picture
from vtkernels.cli._errors import UsageError
from vtkernels.cli._model import side_of

_LLAVA_7B = _model.Geometry(
    vision_layers=24, text_width=4096, text_heads=32, text_ffn=11008, text_layers=32, vocabulary=32064, image_token=32000
)
_13B: dict[str, Any] = {"text_width": 5120, "text_heads": 40, "text_ffn": 13824, "text_layers": 40}
# Layer shapes of the published checkpoints, at full depth.
SHAPES = {
    "llava-1.5-7b": _LLAVA_7B,
    "llava-next-7b": replace(_LLAVA_7B, kind="llava_next"),
    "llava-1.5-13b": replace(_LLAVA_7B, **_13B),
    "llava-next-13b": replace(_LLAVA_7B, **_13B, kind="llava_next"),
}
# For a smoke run: 8 x 8 patches, layers of no weight.
TINY = _model.Geometry(image=112, vision_width=64, vision_heads=4, vision_layers=3, text_width=64, text_heads=4, text_layers=2)


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    ``keeps``: the budgets, patch tokens per image. ``full``: layers of tower and language model in the model that the shapes
    come from.
    """

    name: str
    model: Any
    keeps: tuple[int, ...]
    full: tuple[int, int]

    @property
    def depth(self) -> tuple[int, int]:
        """Layers of tower and language model that run here."""
        return len(tower_layers(self.model)), len(self.model.model.language_model.layers)


def random_subject(
    name: str, geometry: _model.Geometry, depth: tuple[int, int], *, seed: int, dtype: torch.dtype, device: torch.device
) -> Subject:
    """Layers of these shapes, ``depth`` of them, with weights drawn where they stay."""
    cut = replace(geometry, vision_layers=depth[0], text_layers=depth[1])
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = _model.KINDS[geometry.kind]._from_config(cut.config(), dtype=dtype)
    model = model.to(device).eval()  # the few buffers that are made on the CPU whatever the default
    model.generation_config.pad_token_id = 0
    return Subject(name, model, published_keeps(model.config), (geometry.vision_layers, geometry.text_layers))


def checkpoint_subject(path: str, *, dtype: torch.dtype, device: torch.device, trust_remote_code: bool) -> Subject:
    """A LLaVA-1.5 or LLaVA-NeXT checkpoint from a folder or the hub, whole.

    Raises:
        UsageError: it cannot be loaded, or does not take the pictures of this benchmark.
    """
    config = _model.checkpoint_config(path, trust_remote_code=trust_remote_code, kinds=tuple(_model.KINDS))
    size = 2 * config.vision_config.image_size
    if config.model_type == "llava_next" and [size, size] not in [list(pair) for pair in config.image_grid_pinpoints]:
        raise UsageError(
            f"argument --model: {path!r} has no image_grid_pinpoints of {size} x {size}; this benchmark needs them"
        )
    if "clip" in config.vision_config.model_type and config.vision_feature_select_strategy != "default":
        raise UsageError(f"argument --model: {path!r} hands on the tower's class token; give a model that selects 'default'")
    model = _model.checkpoint_model(path, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = 0  # nothing is padded; generate would say so on every run
    subject = Subject(path, model, published_keeps(model.config), (0, 0))
    return replace(subject, full=subject.depth)


def published_keeps(config: Any) -> tuple[int, ...]:
    """The budgets of the papers: 192, 128, 64 of 576 tokens, 640, 320, 160 of 2880; the same shares of other grids."""
    patches = crops(config) * side_of(config) ** 2
    shares = ((2, 9), (1, 9), (1, 18)) if config.model_type == "llava_next" else ((1, 3), (2, 9), (1, 9))
    return tuple(max(1, patches * part // whole) for part, whole in shares)


def crops(config: Any) -> int:
    """Calls of the tower per picture: LLaVA-NeXT sees a square picture as a whole and in 2 x 2 tiles."""
    return 5 if config.model_type == "llava_next" else 1


def visual_tokens(config: Any) -> int:
    """Tokens of a picture in the unpruned prompt, newlines included."""
    side = side_of(config)
    return crops(config) * side**2 + (2 * side if config.model_type == "llava_next" else 0)


def inputs(model: Any, concurrency: int, text_tokens: int, seed: int) -> dict[str, Tensor]:
    """One batch of as many requests, each with a picture and a prompt of its own.

    Pictures are cuts of the photograph that comes with the package. Prompts are ``text_tokens`` words drawn from the
    vocabulary, without meaning: no figure here depends on one. All are of one length, so that nothing is padded.
    """
    config, parameter = model.config, next(model.parameters())
    text, image = config.get_text_config(), config.image_token_id
    special = {image, text.pad_token_id, text.bos_token_id, *_several(text.eos_token_id)}
    words = torch.tensor([i for i in range(3, text.vocab_size) if i not in special])
    random = torch.Generator().manual_seed(seed)
    drawn = words[torch.randint(len(words), (concurrency, text_tokens), generator=random)]
    pictures = torch.full((concurrency, visual_tokens(config)), image)
    half = text_tokens // 2
    ids = torch.cat([drawn[:, :half], pictures, drawn[:, half:]], dim=1).to(parameter.device)

    side, photograph = config.vision_config.image_size, _picture.read(None)
    pixels = torch.stack([_pixels(photograph, request, concurrency, side, crops(config) > 1) for request in range(concurrency)])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels.to(parameter)}
    if crops(config) > 1:
        batch["image_sizes"] = torch.tensor([[2 * side, 2 * side]] * concurrency, device=parameter.device)
    return batch


def _pixels(photograph: Any, request: int, requests: int, side: int, tiled: bool) -> Tensor:
    """[3, H, W], or [5, 3, H, W] in tiles: a square cut of the photograph, elsewhere for every request."""
    length = 3 * min(photograph.size) // 4
    share = (request + 0.5) / requests
    left, top = int(share * (photograph.width - length)), int((1 - share) * (photograph.height - length))
    cut = photograph.crop((left, top, left + length, top + length))
    whole = _picture.normalise(_picture.centre_square(cut, side), _model.MEAN, _model.STD)
    if not tiled:
        return whole[0]
    large = _picture.normalise(_picture.centre_square(cut, 2 * side), _model.MEAN, _model.STD)
    tiles = large.unflatten(3, (2, side)).unflatten(2, (2, side)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return torch.cat([whole, tiles])


def side_within(config: Any, keep: int) -> int:
    """Patches along a side of the largest picture (on LLaVA-NeXT: of every crop) that has no more than ``keep`` patches."""
    side = side_of(config)
    while crops(config) * side**2 > keep and side > 1:
        side -= 1
    return side


def shrunk(model: Any, side: int) -> Any:
    """The same model for pictures of ``side`` x ``side`` patches: it shares every weight but the tower's position embedding.

    That one is interpolated (bicubic) as transformers' ``interpolate_pos_encoding=True`` does, which the LLaVA classes do not
    hand on; here once and not in every call.
    """
    kept = (*model.parameters(), *model.buffers())
    small = copy.deepcopy(model, {id(tensor): tensor for tensor in kept})
    embeddings = _tower(small).embeddings
    patch, weight = small.config.vision_config.patch_size, embeddings.position_embedding.weight.detach()
    old = embeddings.num_patches if hasattr(embeddings, "num_patches") else len(weight)
    first, grid = weight[: len(weight) - old], weight[len(weight) - old :]
    grid = grid.T.unflatten(1, (round(old**0.5), -1))[None].float()
    grid = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)[0].flatten(1).T.to(weight)
    embeddings.position_embedding = nn.Embedding.from_pretrained(torch.cat([first, grid]))
    embeddings.position_ids = torch.arange(len(first) + side**2, device=weight.device)[None]
    embeddings.image_size, embeddings.num_patches = side * patch, side**2
    embeddings.num_positions = len(first) + side**2
    small.config.vision_config.image_size = side * patch
    if crops(small.config) > 1:
        small.config.image_grid_pinpoints = [[2 * side * patch, 2 * side * patch]]
    return small


def tower_layers(model: Any) -> Any:
    """The encoder layers of the vision tower."""
    return _tower(model).encoder.layers


def _tower(model: Any) -> Any:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)  # transformers 4 has a module between


@contextmanager
def without_language_layers(model: Any) -> Iterator[None]:
    """The model with its prompt going straight to the head, so that a check of what is before costs no language model."""
    core = model.model.language_model
    layers, core.layers = core.layers, nn.ModuleList()
    try:
        yield
    finally:
        core.layers = layers


def faster_dtype() -> torch.dtype:
    """float32 or bfloat16, whichever multiplies faster on this processor (few have bfloat16 instructions)."""

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(256, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - begin)
        return min(times)

    return min((torch.float32, torch.bfloat16), key=seconds)


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)
