"""The analytic FLOP model against PyTorch's own counter, and against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtkernels import flops

transformers = pytest.importorskip("transformers")

VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 42,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        image_token_index=40,
        vision_feature_layer=-2,
        # Plain matrix products: the counter knows these on every device.
        attn_implementation="eager",
    )
    return transformers.LlavaForConditionalGeneration(config).eval()


def count(function, *args, **kwargs) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(*args, **kwargs)
    return counter.get_total_flops()


def rotary(model, tokens: int) -> int:
    """The rotary angles: an outer product that some versions write as a matrix product. The formulas leave it out."""
    return count(model.model.language_model.rotary_emb, torch.zeros(1, tokens, 32), torch.arange(tokens)[None])


def test_vision_tower(model):
    sizes = flops.Llava.from_config(model.config)
    assert sizes.patches == 9
    assert count(model.model.vision_tower, torch.zeros(1, 3, 42, 42)) == sizes.vision_tower()
    assert count(model.model.vision_tower, torch.zeros(5, 3, 42, 42)) == sizes.vision_tower(crops=5)


@pytest.mark.parametrize("tokens", [1, 4, 9])
def test_projector(model, tokens):
    sizes = flops.Llava.from_config(model.config)
    assert count(model.model.multi_modal_projector, torch.zeros(1, tokens, 48)) == sizes.projector(tokens)


@pytest.mark.parametrize("tokens", [3, 17])
def test_prefill(model, tokens):
    sizes = flops.Llava.from_config(model.config)
    got = count(model, input_ids=torch.ones(1, tokens, dtype=torch.long), logits_to_keep=1)
    assert got - rotary(model, tokens) == sizes.prefill(tokens)


def test_decode(model):
    sizes = flops.Llava.from_config(model.config)
    ids = torch.ones(1, 11, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    got = count(model, input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    assert got - rotary(model, 1) == sizes.decode(12)


def test_first_token_is_the_whole_forward(model):
    sizes = flops.Llava.from_config(model.config)
    ids = torch.tensor([[1, 2, *[40] * 9, 3]])
    got = count(model, input_ids=ids, pixel_values=torch.zeros(1, 3, 42, 42), logits_to_keep=1)
    assert got - rotary(model, 12) == sizes.first_token(text_tokens=3, visual_tokens=9)


def test_selection_products():
    query, key, features = torch.zeros(4, 1, 12), torch.zeros(4, 12, 10), torch.zeros(9, 48)
    assert count(torch.bmm, query, key) == flops.attention_topk(9, heads=4, head_dim=12)
    gram = count(torch.mm, features, features.T)
    assert flops.scope(9, 48, 0, heads=4, head_dim=12) == gram + flops.attention_topk(9, heads=4, head_dim=12)
    assert flops.scope(9, 48, 5, heads=4, head_dim=12) > flops.scope(9, 48, 4, heads=4, head_dim=12)


def test_concatenated_layers_widen_the_projector(model):
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION),
        text_config=transformers.LlamaConfig(**TEXT),
        vision_feature_layer=[-2, -3],
    )
    assert flops.Llava.from_config(config).features == 96


def test_llava_7b_by_hand():
    """LLaVA-1.5-7B: 2 FLOPs per weight and token, 6.476e9 weights in the layers, plus attention and the head."""
    text = flops.Transformer(layers=32, width=4096, heads=32, kv_heads=32, head_dim=128, intermediate=11008, gated=True)
    vision = flops.Transformer(layers=24, width=1024, heads=16, kv_heads=16, head_dim=64, intermediate=4096, gated=False)
    model = flops.Llava(vision, text, patches=576, patch=14, features=1024, vocabulary=32064)
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    attention = 32 * 4 * 626 * 626 * 4096
    assert model.prefill(626) == 2 * weights * 626 + attention + 2 * 4096 * 32064
    assert model.prefill(626) == pytest.approx(8.31e12, rel=0.01)
    assert model.decode(627) < model.decode(628) < 1.1 * model.decode(115)
