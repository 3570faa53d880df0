"""The analytic FLOP model against PyTorch's own counter, and against figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vtkernels import flops, methods
from vtkernels.cli._arguments import METHODS
from vtkernels.cli._sizes import PRESETS

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
    assert count(model.model.vision_tower, torch.zeros(5, 3, 42, 42)) == replace(sizes, crops=5).vision_tower()


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


class FirstProjected:
    """Keeps the first tokens, after the projector, without any arithmetic."""

    needs = frozenset({"projected"})

    def select(self, context, k):
        return methods.Selection(torch.arange(k).expand(context.batch, -1).contiguous())


@pytest.mark.parametrize(
    ("name", "method", "keep"), [(None, None, 9), ("Uniform", methods.Uniform(), 4), ("GPrune", FirstProjected(), 4)]
)
def test_first_token_is_the_whole_forward(model, name, method, keep):
    """Unpruned, pruned before the projector and after it: the projector runs on what is left, or on everything."""
    from vtkernels import prune

    sizes = flops.Llava.from_config(model.config)
    ids = torch.tensor([[1, 2, *[40] * 9, 3]])
    pruning = None if method is None else prune(model, method, keep)
    got = count(model, input_ids=ids, pixel_values=torch.zeros(1, 3, 42, 42), logits_to_keep=1)
    if pruning is not None:
        pruning.remove()
    cost = flops.cost(sizes, name, keep, prompt_tokens=3)
    assert cost.visual_tokens == keep
    assert got == cost.first_token - cost.selection


def test_answer_is_every_step(model):
    sizes = flops.Llava.from_config(model.config)
    cost = flops.cost(sizes, "Uniform", 4, prompt_tokens=3, new_tokens=6)
    assert cost.decode == sum(sizes.decode(7 + step) for step in range(1, 6))
    assert cost.answer == cost.first_token + cost.decode
    assert flops.cost(sizes, "Uniform", 4, prompt_tokens=3).decode == 0


def test_batch_multiplies_everything():
    sizes = PRESETS["llava-next-8b"][1]
    one, four = (flops.cost(sizes, "GPrune", 320, prompt_tokens=9, new_tokens=5, batch=batch) for batch in (1, 4))
    for stage in ("vision", "selection", "projector", "prefill", "decode", "kv_cache"):
        assert getattr(four, stage) == 4 * getattr(one, stage) > 0


def test_kv_cache_is_the_models(model):
    """Keys and values of two heads, not of the four that query them."""
    sizes = flops.Llava.from_config(model.config)
    with torch.no_grad():
        cache = model(input_ids=torch.ones(1, 11, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert held == sizes.kv_cache(11, dtype_bytes=4) == 2 * sizes.kv_cache(11)
    assert flops.cost(sizes, "Uniform", 4, prompt_tokens=3, new_tokens=5, dtype_bytes=4).kv_cache == held


class TestSelection:
    def test_attention(self):
        query, key, queries = torch.zeros(4, 1, 12), torch.zeros(4, 12, 10), torch.zeros(4, 9, 12)
        assert count(torch.bmm, query, key) == flops.attention_topk(9, heads=4, head_dim=12)
        sums = 2 * 4 * 9 * 9
        assert count(torch.bmm, queries, key) + sums == flops.attention_profile(9, heads=4, head_dim=12)

    def test_gram_is_one_triangle(self):
        x = torch.zeros(9, 48)
        assert flops.gram(9, 48) == sum(count(torch.mm, x[: i + 1], x[i, :, None]) for i in range(9))
        assert flops.gram(576, 1024) == pytest.approx(count(torch.mm, x, x.T) * (576 / 9) ** 2 * 1024 / 48 / 2, rel=0.002)

    def test_scope(self):
        attention = flops.attention_topk(9, heads=4, head_dim=12)
        assert flops.scope(9, 48, 0, heads=4, head_dim=12) == flops.gram(9, 48) + attention
        assert flops.scope(9, 48, 5, heads=4, head_dim=12) > flops.scope(9, 48, 4, heads=4, head_dim=12)

    @pytest.mark.parametrize("iterations", [1, 2, 3, 5, 6, 7, 8])
    def test_graph_propagate(self, iterations):
        """The published matrix power, counted as torch runs it, against one vector product per iteration."""
        features, weights, mass = torch.zeros(9, 48), torch.zeros(9, 9), torch.zeros(1, 9)
        power = count(torch.linalg.matrix_power, weights, iterations)
        published = count(torch.mm, features, features.T) + power + count(torch.mm, mass, weights)
        assert published == flops.graph_propagate_published(9, 48, iterations)
        products = iterations * count(torch.mm, mass, weights)
        assert flops.graph_propagate(9, 48, iterations) == flops.gram(9, 48) + 9 * 9 + products

    def test_graph_propagate_published_figures(self):
        """G-Prune's grid of 2304 tokens: 43.5 GFLOP of similarities and 73.4 of matrix power, against half of the former."""
        assert flops.graph_propagate_published(2304, 4096) == pytest.approx(43.5e9 + 73.4e9, rel=0.001)
        assert flops.graph_propagate(2304, 4096) == pytest.approx(21.8e9, rel=0.003)

    @pytest.mark.parametrize(("tokens", "crops"), [(9, 1), (9, 4), (16, 4), (5, 5)])
    def test_crop_topk(self, tokens, crops):
        sizes = [len(run) for run in torch.arange(tokens).tensor_split(crops)]
        assert flops.crop_topk(tokens, 48, crops) == sum(flops.gram(n, 48) + 3 * n * n for n in sizes)

    def test_methods_on_llava_1_5(self):
        model = PRESETS["llava-1.5-7b"][1]
        got = {name: selector.flops(model, 64, 40) for name, selector in flops.SELECTION.items()}
        assert got["Random"] == got["Uniform"] == 0
        assert got["TopAttention"] == 2 * 16 * 64 * 577
        assert got["HoloV"] == got["TopAttention"] + flops.crop_topk(576, 4096, 16)
        assert flops.SELECTION["HoloV"].flops(model, 192, 40) == got["TopAttention"] + flops.crop_topk(576, 4096, 5)
        assert got["GPrune"] == flops.graph_propagate(576, 4096)
        assert got["PAR"] == flops.gram(576, 4096) + 2 * 576 * 4096 * (40 + 64) + 576 * 4096
        assert got["Scope"] == flops.scope(576, 1024, 64, 16, 64)
        assert got["FoPru"] == flops.attention_profile(576, 16, 64)

    def test_methods_on_llava_next(self):
        """Five crops apart, base and grid apart, or everything together."""
        model = PRESETS["llava-next-8b"][1]
        got = {name: selector.flops(model, 320, 40) for name, selector in flops.SELECTION.items()}
        assert got["Scope"] == 5 * flops.scope(576, 1024, 64, 16, 64)
        assert got["FoPru"] == 5 * flops.attention_profile(576, 16, 64)
        assert got["GPrune"] == flops.graph_propagate(576, 4096) + flops.graph_propagate(2304, 4096)
        assert got["HoloV"] == got["TopAttention"] + flops.crop_topk(2880, 4096, 16)

    def test_every_method_is_there_and_stands_where_it_asks_for_tokens(self):
        assert set(flops.SELECTION) == set(METHODS)
        for name, selector in flops.SELECTION.items():
            assert selector.after_projector == ("projected" in getattr(methods, name)().needs), name

    def test_newlines(self):
        model = PRESETS["llava-next-7b"][1]
        kept = {name: flops.cost(model, name, 320, prompt_tokens=9).visual_tokens for name in flops.SELECTION}
        assert {name for name, tokens in kept.items() if tokens == 320} == {"Scope", "FoPru", "HoloV"}
        assert set(kept.values()) == {320, 368}
        assert flops.cost(model, None, 0, prompt_tokens=9).visual_tokens == 2928


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_are_the_published_configs(name):
    """The fields that the checkpoints' config.json files set; the rest are defaults of the classes."""
    text = {
        "llava-1.5-7b": {"vocab_size": 32064},
        "llava-1.5-13b": {
            "vocab_size": 32064,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
        },
        "llava-next-7b": {"vocab_size": 32064},
        "llava-next-8b": {"vocab_size": 128320, "intermediate_size": 14336, "num_key_value_heads": 8},
    }
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=336, patch_size=14
    )
    kind = transformers.LlavaNextConfig if "next" in name else transformers.LlavaConfig
    config = kind(vision_config=vision, text_config=transformers.LlamaConfig(**text[name]))
    assert flops.Llava.from_config(config) == PRESETS[name][1]


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
