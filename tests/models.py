"""Small random models of the real classes, and inputs for them without a processor."""

from __future__ import annotations

from typing import NamedTuple

import packing
import torch
import transformers
from packing import Packed
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

IMAGE, VIDEO, PAD, END = 90, 91, 0, 1  # token ids; ordinary words are 2 to 89
FIVE = int(transformers.__version__.split(".")[0]) >= 5
# Tiles (rows, columns) that the processor of a model with tiles may cut an image into.
TILES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))


class Image(NamedTuple):
    """A word of a prompt: an image of this size. Models without tiles scale every image to the same size."""

    height: int
    width: int


DEFAULT = Image(100, 80)  # what the word "image" means


def llava(
    *, layers=3, side=4, feature_layer=-2, strategy="default", tower="clip", attention="sdpa", dtype=torch.float32, seed=0
):
    """A ``LlavaForConditionalGeneration`` with side x side patches, in eval mode, warmed up (see :func:`warm_up`)."""
    config = dict(
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=side * side + (tower == "clip") - (strategy == "default"),
    )
    return _build(
        LlavaForConditionalGeneration,
        LlavaConfig,
        config,
        _vision(tower, layers, side),
        attention=attention,
        dtype=dtype,
        seed=seed,
    )


def llava_next(*, layers=3, side=4, feature_layer=-2, strategy="default", tower="clip", tiles=TILES, **how):
    """A ``LlavaNextForConditionalGeneration``."""
    config = dict(
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_grid_pinpoints=_pinpoints(tiles, side),
    )
    return _build(LlavaNextForConditionalGeneration, LlavaNextConfig, config, _vision(tower, layers, side), **how)


def llava_next_video(
    *, layers=3, side=4, feature_layer=-2, tower="clip", strategy="default", mode="average", tiles=TILES, **how
):
    """A ``LlavaNextVideoForConditionalGeneration``; frames are pooled in squares of 2 x 2."""
    config = dict(
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_grid_pinpoints=_pinpoints(tiles, side),
        video_token_index=VIDEO,
        spatial_pool_mode=mode,
        spatial_pool_stride=2,
    )
    return _build(LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig, config, _vision(tower, layers, side), **how)


def llava_onevision(
    *, layers=3, side=4, feature_layer=-1, tower="siglip", strategy="full", limit=2, tiles=(*TILES, (3, 3)), **how
):
    """A ``LlavaOnevisionForConditionalGeneration``; images of more than about ``limit`` tiles are pooled."""
    config = dict(
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_grid_pinpoints=_pinpoints(tiles, side),
        video_token_index=VIDEO,
        vision_aspect_ratio=f"anyres_max_{limit}",
    )
    return _build(LlavaOnevisionForConditionalGeneration, LlavaOnevisionConfig, config, _vision(tower, layers, side), **how)


def video_llava(*, layers=3, side=4, feature_layer=-2, strategy="default", **how):
    """A ``VideoLlavaForConditionalGeneration``."""
    config = dict(
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        video_token_index=VIDEO,
        image_seq_length=side * side + (strategy == "full"),
        video_seq_length=side * side + 1,
    )
    return _build(VideoLlavaForConditionalGeneration, VideoLlavaConfig, config, _vision("clip", layers, side), **how)


def vipllava(*, layers=3, side=4, feature_layers=(-2, -3, 1), tower="clip", **how):
    """A ``VipLlavaForConditionalGeneration`` with several feature layers."""
    name = "vision_feature_layer" if FIVE else "vision_feature_layers"
    config = {name: list(feature_layers), "image_seq_length": side * side}
    return _build(VipLlavaForConditionalGeneration, VipLlavaConfig, config, _vision(tower, layers, side), **how)


def _vision(tower, layers, side):
    return (CLIPVisionConfig if tower == "clip" else SiglipVisionConfig)(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        image_size=14 * side,
        patch_size=14,
    )


def _pinpoints(tiles, side):
    return [[14 * side * rows, 14 * side * columns] for rows, columns in tiles]


def _build(kind, config_class, config, vision, *, attention="sdpa", dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=2,
        eos_token_id=END,
    )
    config = config_class(vision_config=vision, text_config=text, image_token_index=IMAGE, **config)
    config._attn_implementation = attention
    model = kind(config).to(dtype).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # the initial weights are so small that attention is flat and every logit is the same
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(5)
            if "embed_tokens" in name or "position_embedding" in name:
                weight.mul_(20)
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = END
    warm_up(model)
    return model


def warm_up(model):
    """Plain calls: transformers leaves hooks and attributes of its own on first use, which no test may count as ours."""
    with torch.no_grad():
        model(**inputs(model, [[3, "image", 4]]))
        if takes_videos(model):
            model(**inputs(model, [[3, "video", 4]]))


def takes_videos(model):
    return "Video" in type(model).__name__ or "Onevision" in type(model).__name__


def has_tiles(model):
    return "Next" in type(model).__name__ or "Onevision" in type(model).__name__


def per_image(model):
    """Placeholders of one image of a model without tiles."""
    return model.config.image_seq_length


def is_visual(word):
    return not isinstance(word, int)


def packed(model, word, *, frames=3, tiled=True) -> Packed:
    """Where the tokens of "image", an :class:`Image` or "video" stand; ``tiled`` is False where OneVision takes no tiles."""
    vision, name = model.config.vision_config, type(model).__name__
    pixels, side = vision.image_size, vision.image_size // vision.patch_size
    if word == "video":
        if name.startswith("VideoLlava"):
            return packing.plain(side * side, frames=frames, class_tokens=1)
        if name.startswith("LlavaNextVideo"):
            return packing.plain((side // 2) ** 2, frames=frames)
        return packing.plain(((side + 1) // 2) ** 2, frames=frames, newline=True)
    if not has_tiles(model):
        class_tokens = vision.model_type == "clip_vision_model" and (
            getattr(model.config, "vision_feature_select_strategy", "default") == "full"
        )
        return packing.plain(per_image(model) - class_tokens, class_tokens=int(class_tokens))
    size, pinpoints = DEFAULT if word == "image" else word, model.config.image_grid_pinpoints
    if "Next" in name:
        return packing.anyres(size, pinpoints, pixels, side)
    if not tiled:
        return packing.plain(side * side, newline=True)
    return packing.pooled(size, pinpoints, pixels, side, int(model.config.vision_aspect_ratio.removeprefix("anyres_max_")))


def images_of(prompts):
    return [word for prompt in prompts for word in prompt if is_visual(word) and word != "video"]


def videos_of(prompts):
    return [word for prompt in prompts for word in prompt if word == "video"]


def inputs(model, prompts, *, side="left", seed=0, mask=True, frames=3, one_by_one=False):
    """Everything that a processor gives for prompts, each a list of token ids, "image" (or an :class:`Image`) and "video".

    Args:
        frames: of every video.
        one_by_one: say how many images each prompt has, which has OneVision take no tiles where there are several.
    """
    rows = []
    for prompt in prompts:
        tiled = not one_by_one or len(images_of([prompt])) == 1
        parts = [
            [VIDEO if w == "video" else IMAGE] * len(packed(model, w, frames=frames, tiled=tiled).tokens)
            if is_visual(w)
            else [w]
            for w in prompt
        ]
        rows.append([token for part in parts for token in part])
    width = max(map(len, rows))
    padded = [([PAD] * (width - len(r)) + r) if side == "left" else (r + [PAD] * (width - len(r))) for r in rows]
    seen = [
        ([0] * (width - len(r)) + [1] * len(r)) if side == "left" else ([1] * len(r) + [0] * (width - len(r))) for r in rows
    ]
    result = {"input_ids": torch.tensor(padded)}
    if mask:
        result["attention_mask"] = torch.tensor(seen)
    result |= _images(model, images_of(prompts), seed)
    if videos_of(prompts):
        result["pixel_values_videos"] = _draw(model, len(videos_of(prompts)), frames, 100 * seed + 50)
    if one_by_one:
        result["batch_num_images"] = torch.tensor([n for p in prompts if (n := len(images_of([p])))])
    return result


def _images(model, words, seed):
    if not words:
        return {}
    if not has_tiles(model):
        name = "pixel_values_images" if "VideoLlava" in type(model).__name__ and not FIVE else "pixel_values"
        return {name: pixels(model, len(words), seed=seed)}
    sizes = [DEFAULT if word == "image" else word for word in words]
    crops = max(packed(model, size).calls for size in sizes)
    values = _draw(model, len(sizes), crops, 100 * seed)
    for image, size in zip(values, sizes, strict=True):
        image[packed(model, size).calls :] = 0  # as the processor fills up
    return {"pixel_values": values, "image_sizes": torch.tensor([tuple(size) for size in sizes])}


def _draw(model, count, crops, seed):
    """[count, crops, 3, S, S]; each one is the same in every batch."""
    size = model.config.vision_config.image_size
    draws = []
    for i in range(count):
        generator = torch.Generator().manual_seed(seed + i)
        draws.append(torch.stack([torch.randn(3, size, size, generator=generator) for _ in range(crops)]))
    return torch.stack(draws).to(model.dtype)


def pixels(model, images, *, seed=0):
    """[images, 3, S, S]; image i is the same in every batch."""
    return _draw(model, images, 1, 100 * seed)[:, 0]


def projected(model, pixel_values):
    """[images, tokens, D] of the unpruned model, on every transformers version."""
    features = model.get_image_features(pixel_values=pixel_values)
    return torch.stack(list(getattr(features, "pooler_output", features)))


def visual_features(model, x):
    """[L, D] for every image and then every video of ``inputs``, from the unpruned model, all its visual tokens in order."""
    core, found = model.model, []
    image_arguments = {k: v for k, v in x.items() if k in ("image_sizes", "batch_num_images")}
    for name in ("pixel_values", "pixel_values_images"):
        if name in x:
            result = core.get_image_features(x[name], **image_arguments)
            found += list(getattr(result, "pooler_output", result))
    if "pixel_values_videos" in x:
        videos = x["pixel_values_videos"]
        old_onevision = "Onevision" in type(model).__name__ and not FIVE
        more = (model.config.vision_feature_layer, model.config.vision_feature_select_strategy) if old_onevision else ()
        result = core.get_video_features(videos, *more)
        if hasattr(result, "pooler_output"):
            result = result.pooler_output
        elif isinstance(result, tuple) and isinstance(result[-1], int):
            result = result[0]
        result = torch.stack(list(result)).reshape(len(videos), -1, result[0].shape[-1])
        if old_onevision:  # whose forward puts the newline behind a video
            result = torch.cat([result, core.image_newline.expand(len(videos), 1, -1)], dim=1)
        found += list(result)
    return found


def embedded(model, prompt, kept):
    """[1, L, D]: a prompt built by hand, its images replaced by the tensors [k, D] of ``kept`` in turn."""
    kept = iter(kept)
    table = model.get_input_embeddings()
    return torch.cat([next(kept) if is_visual(word) else table(torch.tensor([word])) for word in prompt])[None]


def places(prompt, kept, sizes):
    """int64 [1, L]: the position of every token of a prompt built by hand in the prompt with whole images."""
    kept, sizes, rows, start = iter(kept), iter(sizes), [], 0
    for word in prompt:
        rows.append(start + next(kept) if is_visual(word) else torch.tensor([start]))
        start += next(sizes) if is_visual(word) else 1
    return torch.cat(rows)[None]
