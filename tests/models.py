"""Small random LLaVA models of the real classes, and inputs for them without a processor."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

IMAGE, PAD, END = 90, 0, 1  # token ids; ordinary words are 2 to 89


def llava(
    *, layers=3, side=4, feature_layer=-2, strategy="default", tower="clip", attention="sdpa", dtype=torch.float32, seed=0
):
    """A ``LlavaForConditionalGeneration`` with side x side patches, in eval mode, warmed up (see :func:`warm_up`)."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    config = LlavaConfig(
        vision_config=vision(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=layers,
            num_attention_heads=4,
            image_size=14 * side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
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
        ),
        image_token_index=IMAGE,
        vision_feature_layer=feature_layer,
        vision_feature_select_strategy=strategy,
        image_seq_length=side * side + (tower == "clip") - (strategy == "default"),
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
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
    """One plain call: transformers leaves hooks and attributes of its own on first use, which no test may count as ours."""
    with torch.no_grad():
        model(**inputs(model, [[3, "image", 4]]))


def per_image(model):
    """Placeholders of one image."""
    return model.config.image_seq_length


def inputs(model, prompts, *, side="left", seed=0, mask=True):
    """``input_ids``, ``attention_mask`` and ``pixel_values`` of prompts, each a list of token ids and the word "image"."""
    rows = [[t for word in prompt for t in ([IMAGE] * per_image(model) if word == "image" else [word])] for prompt in prompts]
    width = max(map(len, rows))
    padded = [([PAD] * (width - len(r)) + r) if side == "left" else (r + [PAD] * (width - len(r))) for r in rows]
    seen = [
        ([0] * (width - len(r)) + [1] * len(r)) if side == "left" else ([1] * len(r) + [0] * (width - len(r))) for r in rows
    ]
    images = sum(prompt.count("image") for prompt in prompts)
    result = {"input_ids": torch.tensor(padded)}
    if mask:
        result["attention_mask"] = torch.tensor(seen)
    if images:
        result["pixel_values"] = pixels(model, images, seed=seed)
    return result


def pixels(model, images, *, seed=0):
    """[images, 3, S, S]; image i is the same in every batch."""
    size = model.config.vision_config.image_size
    draws = [torch.randn(3, size, size, generator=torch.Generator().manual_seed(100 * seed + i)) for i in range(images)]
    return torch.stack(draws).to(model.dtype)


def projected(model, pixel_values):
    """[images, tokens, D] of the unpruned model, on every transformers version."""
    features = model.get_image_features(pixel_values=pixel_values)
    return torch.stack(list(getattr(features, "pooler_output", features)))


def embedded(model, prompt, kept):
    """[1, L, D]: a prompt built by hand, its images replaced by the tensors [k, D] of ``kept`` in turn."""
    kept = iter(kept)
    table = model.get_input_embeddings()
    return torch.cat([next(kept) if word == "image" else table(torch.tensor([word])) for word in prompt])[None]


def places(prompt, kept, sizes):
    """int64 [1, L]: the position of every token of a prompt built by hand in the prompt with whole images."""
    kept, sizes, rows, start = iter(kept), iter(sizes), [], 0
    for word in prompt:
        rows.append(start + next(kept) if word == "image" else torch.tensor([start]))
        start += next(sizes) if word == "image" else 1
    return torch.cat(rows)[None]
