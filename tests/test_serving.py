"""examples/serving without an engine: its core against the ops and ``vt.prune``, its adapters against stand-ins of the engines.

``engines.py`` has the stand-ins and says which versions they follow. What an installed engine says differently fails in
``test_signatures``, which is skipped where there is none.
"""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

import models

import vtkernels as vt

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "serving"))

import engines
from vtkernels_serving import plan, prompt

METHODS = {name: kind() for name, kind in plan.METHODS.items()}
PROMPT = [[3, "image", 4, "image", "image", 5]]


@pytest.fixture(scope="module")
def model():
    return models.llava(side=6)


def captured(model, pixels):
    """Features [B, N, D] before the projector, and queries and keys [B, H, T, d] of the layer whose output they are."""
    tower, found = model.model.vision_tower, {}
    attention = getattr(tower, "vision_model", tower).encoder.layers[-2].self_attn
    hooks = [
        projection.register_forward_hook(lambda module, args, output, name=name: found.update({name: output}))
        for name, projection in (("query", attention.q_proj), ("key", attention.k_proj))
    ]
    with torch.no_grad():
        features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    for hook in hooks:
        hook.remove()
    query, key = (found[name].unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for name in ("query", "key"))
    return features, query, key


class TestPlan:
    @pytest.mark.parametrize("keep", [9, 0.3])
    @pytest.mark.parametrize("name", METHODS)
    def test_is_what_prune_chooses(self, model, name, keep):
        x = models.inputs(model, PROMPT)
        features, query, key = captured(model, x["pixel_values"])
        made = plan.Plan(METHODS[name], keep)
        tokens, indices = made.prune(features, model.model.multi_modal_projector, query, key, (6, 6))
        with torch.no_grad(), vt.prune(model, METHODS[name], keep=keep, positions="contiguous") as pruning:
            expected = model(**x).logits
        assert indices.tolist() == [kept.tolist() for kept in pruning.last.indices]
        ids = prompt.shorten(x["input_ids"][0].tolist(), models.IMAGE, [36] * 3, [made.tokens(36, (6, 6))] * 3)
        embeddings = model.get_input_embeddings()(torch.tensor(ids))
        embeddings[torch.tensor(ids) == models.IMAGE] = tokens.flatten(0, 1)
        with torch.no_grad():
            got = model(inputs_embeds=embeddings[None]).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("name", METHODS)
    @pytest.mark.parametrize("keep", [1, 7, 36, 0.25, 0.01, 1.0])
    def test_count_follows_from_sizes(self, model, name, keep):
        features, query, key = captured(model, models.pixels(model, 2))
        made = plan.Plan(METHODS[name], keep)
        tokens, indices = made.prune(features, model.model.multi_modal_projector, query, key, (6, 6))
        assert tokens.shape[1] == indices.shape[1] == made.tokens(36, (6, 6))
        assert (indices.diff(dim=1) > 0).all()

    @pytest.mark.parametrize("name", METHODS)
    def test_choice_does_not_depend_on_the_batch(self, model, name):
        features, query, key = captured(model, models.pixels(model, 3))
        made = plan.Plan(METHODS[name], 9)
        project = torch.nn.Identity()
        tokens, indices = made.prune(features, project, query, key, (6, 6))
        for i in range(3):
            alone = made.prune(features[i : i + 1], project, query[i : i + 1], key[i : i + 1], (6, 6))
            assert torch.equal(alone[0], tokens[i : i + 1]) and torch.equal(alone[1], indices[i : i + 1])

    def test_key_tells_plans_apart(self):
        plans = [plan.Plan(method, keep) for method in (vt.Scope(), vt.Scope(alpha=0.5), vt.HoloV()) for keep in (64, 0.25)]
        assert len({made.key for made in plans}) == len(plans)
        assert plan.Plan(vt.Scope(), 64).key == plans[0].key

    def test_config(self):
        config = type("Config", (), {"vtkernels_method": "holov", "vtkernels_keep": 0.5})
        assert plan.Plan.from_config(config) == plan.Plan(vt.HoloV(), 0.5)
        config.vtkernels_method = "par"  # reads the prompt
        with pytest.raises(ValueError, match=r"vtkernels_method, one of scope, .*got 'par' and 0\.5"):
            plan.Plan.from_config(config)
        with pytest.raises(ValueError, match="got None and None"):
            plan.Plan.from_config(object())


class TestPrompt:
    def test_shorten(self):
        assert prompt.shorten([1, 9, 9, 9, 2, 9, 9, 9, 9, 9], 9, [3, 3, 2], [1, 2, 2]) == [1, 9, 2, 9, 9, 9, 9]

    @pytest.mark.parametrize(
        ("ids", "before", "message"),
        [
            ([1, 9, 9, 2], [3], "from 1 on are not those of images"),
            ([9, 9, 9], [2], "from 2 on are not those of images"),
            ([1, 2], [2], "placeholders of 0 images, but 1 were given"),
        ],
    )
    def test_shorten_refuses(self, ids, before, message):
        with pytest.raises(ValueError, match=message):
            prompt.shorten(ids, 9, before, [1] * len(before))

    @pytest.mark.parametrize("rows", [1, 3])
    def test_positions(self, rows):
        positions = torch.arange(10).expand(rows, -1) * torch.arange(1, rows + 1)[:, None]
        kept = [torch.tensor([0, 2]), torch.tensor([1])]
        got = prompt.positions_after(positions, starts=[1, 6], sizes=[4, 2], indices=kept)
        assert got[0].tolist() == [0, 1, 3, 5, 7, 8, 9]
        assert torch.equal(got, got[:1] * torch.arange(1, rows + 1)[:, None])

    def test_positions_are_those_of_prune(self, model):
        x = models.inputs(model, PROMPT)
        with torch.no_grad(), vt.prune(model, vt.Scope(), keep=9, positions="original") as pruning:
            expected = model(**x).logits
        tokens, _ = plan.Plan(vt.Scope(), 9).prune(*_for_prune(model, x))
        ids = torch.tensor(prompt.shorten(x["input_ids"][0].tolist(), models.IMAGE, [36] * 3, [9] * 3))
        whole = torch.arange(x["input_ids"].shape[1])[None]
        positions = prompt.positions_after(whole, [1, 38, 74], [36] * 3, pruning.last.indices)
        embeddings = model.get_input_embeddings()(ids)
        embeddings[ids == models.IMAGE] = tokens.flatten(0, 1)
        with torch.no_grad():
            got = model(inputs_embeds=embeddings[None], position_ids=positions, attention_mask=torch.ones(1, len(ids))).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("size", [1, 4, 7, 50])
    def test_chunks_take_everything_once(self, size):
        offset, tokens, length = 5, 9, 20
        embeddings = torch.arange(tokens)
        parts = [embeddings[prompt.in_chunk(offset, tokens, begin, begin + size)] for begin in range(0, length, size)]
        assert torch.cat(parts).tolist() == embeddings.tolist()
        for begin, part in zip(range(0, length, size), parts, strict=True):
            places = part + offset
            assert ((places >= begin) & (places < begin + size)).all()


def _for_prune(model, x):
    features, query, key = captured(model, x["pixel_values"])
    return features, model.model.multi_modal_projector, query, key, (6, 6)


@pytest.fixture
def vllm(monkeypatch):
    return engines.install_vllm(monkeypatch)


@pytest.fixture
def sglang(monkeypatch):
    return engines.install_sglang(monkeypatch)


class TestVllmLlava:
    @pytest.mark.parametrize("name", METHODS)
    def test_embeddings(self, model, vllm, name):
        adapter = vllm.adapter("vllm_llava").VtkernelsLlavaForConditionalGeneration(
            vllm_config=vllm.config(model, vtkernels_method=name, vtkernels_keep=9)
        )
        pixels = models.pixels(model, 3)
        with torch.no_grad(), vt.prune(model, METHODS[name], keep=9, positions="contiguous"):
            expected = models.projected(model, pixels)
        with torch.no_grad():
            got = adapter.embed_multimodal(pixel_values=pixels)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert adapter._qkv is None  # no activations are kept

    def test_placeholders_and_hashes(self, model, vllm):
        module = vllm.adapter("vllm_llava")
        factories = module.VtkernelsLlavaForConditionalGeneration._processor_factory
        hashes = set()
        for keep in (9, 0.5):
            info = factories.info(vllm.context(model, vtkernels_method="scope", vtkernels_keep=keep))
            processor = factories.processor(info, factories.dummy_inputs(info))
            assert info.get_num_image_tokens(image_width=640, image_height=480) == (9 if keep == 9 else 18)
            hashes |= set(processor._get_mm_hashes(vllm.inputs(["picture"]))["image"])
        assert len(hashes) == 2 and all(name.startswith("picture-") for name in hashes)

    def test_embeddings_of_the_caller_stay(self, model, vllm):
        adapter = vllm.adapter("vllm_llava").VtkernelsLlavaForConditionalGeneration(
            vllm_config=vllm.config(model, vtkernels_method="scope", vtkernels_keep=9)
        )
        given = torch.randn(1, 20, 32)
        assert adapter.embed_multimodal(image_embeds=given) is given

    def test_refuses_heads_that_are_split(self, model, vllm):
        module = vllm.adapter("vllm_llava")
        for name in ("scope", "fopru"):
            with pytest.raises(ValueError, match=r"split over 2 GPUs; run with --mm-encoder-tp-mode data"):
                module.VtkernelsLlavaForConditionalGeneration(
                    vllm_config=vllm.config(model, tp_size=2, vtkernels_method=name, vtkernels_keep=9)
                )

    def test_refuses_a_class_token(self, model, vllm):
        with pytest.raises(ValueError, match="got 'clip_vision_model' and 'full'"):
            vllm.adapter("vllm_llava").VtkernelsLlavaForConditionalGeneration(
                vllm_config=vllm.config(
                    model, vision_feature_select_strategy="full", vtkernels_method="scope", vtkernels_keep=9
                )
            )

    def test_plugin_names_what_exists(self, vllm):
        vllm.adapter("vllm_plugin").register()
        assert set(vllm.registered) == {
            "VtkernelsLlavaForConditionalGeneration",
            "VtkernelsQwen2_5_VLForConditionalGeneration",
        }
        for name, place in vllm.registered.items():
            module, _, found = place.partition(":")
            assert getattr(vllm.adapter(module.rpartition(".")[2]), found).__name__ == name


class TestVllmQwen:
    @pytest.mark.parametrize(("frames", "rate"), [(1, 0.5), (4, 0.5), (5, 0.7), (3, 0.99), (4, 0.01)])
    def test_videos(self, vllm, frames, rate):
        module = vllm.adapter("vllm_qwen2_5_vl")
        adapter = module.VtkernelsQwen2_5_VLForConditionalGeneration(video_pruning_rate=rate)
        tokens = torch.randn(frames * 12, 16)
        video = {"video_grid_thw": torch.tensor([[frames, 6, 8]]), "second_per_grid_ts": torch.tensor([1.0])}
        (got,) = adapter._postprocess_video_embeds_evs((tokens,), video)
        k = max(12, int(frames * 12 * (1 - rate)))  # the published count
        assert got.shape == (k, 16 + 4)
        chosen = [(tokens == row).all(1).nonzero().item() for row in got[:, :16]]
        assert chosen == sorted(set(chosen))
        places = torch.tensor([[c // 12, c % 12 // 4, c % 4, 4] for c in chosen])
        places[:, 0] *= 2  # tokens per second
        assert torch.equal(got[:, 16:].long(), places)

    def test_frames_share_equally(self, vllm):
        cover = vllm.adapter("vllm_qwen2_5_vl").cover_frames
        frames = torch.randn(5, 12, 16)
        indices = cover(frames, 28)
        assert torch.equal(indices // 12, torch.tensor([0] * 6 + [1] * 6 + [2] * 6 + [3] * 5 + [4] * 5))
        for t, k in enumerate((6, 6, 6, 5, 5)):
            mine = indices[indices // 12 == t] - 12 * t
            assert torch.equal(mine, vt.scope_select(frames[t : t + 1], None, k)[0])

    def test_needs_times(self, vllm):
        adapter = vllm.adapter("vllm_qwen2_5_vl").VtkernelsQwen2_5_VLForConditionalGeneration(video_pruning_rate=0.5)
        with pytest.raises(ValueError, match="second_per_grid_ts is missing"):
            adapter._postprocess_video_embeds_evs((), {"video_grid_thw": torch.tensor([[1, 2, 2]])})


class TestSglang:
    def loaded(self, sglang, model, **config):
        module = sglang.adapter("sglang_models.llava")
        adapter = module.EntryClass(sglang.config(model, **config))
        adapter.load_weights([])
        return adapter

    @pytest.mark.parametrize("name", METHODS)
    def test_embeddings(self, model, sglang, name):
        adapter = self.loaded(sglang, model, vtkernels_method=name, vtkernels_keep=9)
        pixels = models.pixels(model, 3)
        with torch.no_grad(), vt.prune(model, METHODS[name], keep=9, positions="contiguous"):
            expected = models.projected(model, pixels)
        with torch.no_grad():
            got = adapter.encode_images(pixels)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        assert not adapter._taken

    def test_placeholders(self, model, sglang):
        adapter = self.loaded(sglang, model, vtkernels_method="scope", vtkernels_keep=0.25)
        ids = adapter.pad_input_ids([3, models.IMAGE, 4, models.IMAGE], sglang.images(7, 8))
        assert ids == [3, *[7] * 9, 4, *[8] * 9]
        with pytest.raises(ValueError, match="more than 16, which is not pruned here; got 17"):
            adapter.pad_input_ids([], sglang.images(*range(17)))

    @pytest.mark.parametrize(
        "config",
        [{"image_aspect_ratio": "anyres"}, {"mm_patch_merge_type": "spatial_unpad"}, {"mm_vision_select_feature": "cls_patch"}],
    )
    def test_refuses(self, model, sglang, config):
        with pytest.raises(ValueError, match=next(iter(config.values()))):
            self.loaded(sglang, model, vtkernels_method="scope", vtkernels_keep=9, **config)

    def test_name_is_that_of_the_checkpoints(self, sglang):
        # SGLang finds models and image processors by it
        assert sglang.adapter("sglang_models.llava").EntryClass.__name__ == "LlavaLlamaForCausalLM"


@pytest.mark.parametrize("engine", engines.SOURCES)
def test_signatures(engine):
    """The engine that is installed has what the adapters build on, as the stand-ins have it."""
    missing = engines.differences(engine)
    if missing is None:
        pytest.skip(f"{engine} is not installed; the stand-ins follow {engines.VERSIONS[engine]}")
    assert missing == []
