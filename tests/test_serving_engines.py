"""examples/serving inside the engines' own classes, on a CPU and without a server; skipped where an engine is not installed.

What runs: the processor and the model class of vLLM, the model class and the registry of SGLang, with small random weights.
What does not: schedulers, attention kernels of the language model, anything on a GPU.
"""

import array
import copy
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

import models
import transformers

import vtkernels as vt

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "serving"))

from vtkernels_serving.plan import METHODS

KEEP = 9
EXAMPLE = sys.path[0]


@pytest.fixture(scope="module")
def model():
    """Its weights are those of half precision, which SGLang loads the tower in."""
    return models.llava(side=6).half().float()


def expected(model, name, pixels):
    with torch.no_grad(), vt.prune(model, METHODS[name](), keep=KEEP, positions="contiguous"):
        return models.projected(model, pixels)


class TestVllm:
    @pytest.fixture(scope="class")
    def checkpoint(self, model, tmp_path_factory):
        """As the hub's checkpoints name their weights."""
        pytest.importorskip("vllm.model_executor.models.llava")
        from safetensors.torch import load_file, save_file
        from test_docs import save_checkpoint

        folder = tmp_path_factory.mktemp("vllm")
        # the tower's own activation is an op of vLLM that only its compiled library has
        config = copy.deepcopy(model.config)
        config.vision_config.hidden_act = "gelu"
        model = transformers.LlavaForConditionalGeneration(config).eval()
        names = ("CLIPImageProcessorPil", "CLIPImageProcessor")
        save_checkpoint(folder, model, transformers.LlavaProcessor, names)
        weights = load_file(folder / "model.safetensors")
        if not any("vision_model" in name for name in weights):
            weights = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in weights.items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder, model

    @pytest.fixture(autouse=True)
    def importable(self, monkeypatch):
        """vLLM looks at a model's class in a process of its own."""
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([EXAMPLE, os.environ.get("PYTHONPATH", "")]))

    def config(self, folder, name):
        from vllm.config import ModelConfig
        from vtkernels_serving.vllm_plugin import register

        register()
        overrides = {
            "architectures": ["VtkernelsLlavaForConditionalGeneration"],
            "vtkernels_method": name,
            "vtkernels_keep": KEEP,
        }
        return ModelConfig(model=str(folder), dtype="float32", hf_overrides=overrides, max_model_len=256)

    def test_processor(self, checkpoint):
        from PIL import Image
        from vllm.multimodal import MULTIMODAL_REGISTRY
        from vllm.multimodal.processing import ProcessorInputs, TimingContext

        hashes = set()
        for name in ("scope", "uniform"):
            processor = MULTIMODAL_REGISTRY.create_processor(self.config(checkpoint[0], name))
            picture = Image.new("RGB", (100, 80))
            items = processor.info.parse_mm_data({"image": [picture, picture]})
            inputs = ProcessorInputs(prompt=[3, models.IMAGE, 4, models.IMAGE, 5], mm_data_items=items)
            got = processor.apply(inputs, TimingContext(enabled=False))
            image = [models.IMAGE] * KEEP
            assert list(got["prompt_token_ids"]) == [3, *image, 4, *image, 5]
            assert [(place.offset, place.length) for place in got["mm_placeholders"]["image"]] == [(1, KEEP), (KEEP + 2, KEEP)]
            hashes |= set(got["mm_hashes"]["image"])
        assert len(hashes) == 2  # one picture, two plans

    def test_model(self, checkpoint, monkeypatch):
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import init_distributed_environment, initialize_model_parallel
        from vllm.forward_context import set_forward_context
        from vllm.model_executor.model_loader import get_model
        from vllm.utils.network_utils import get_open_port

        monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
        folder, model = checkpoint
        pixels = models.pixels(model, 3)
        for name in METHODS:
            config = VllmConfig(model_config=self.config(folder, name))
            with set_current_vllm_config(config), torch.no_grad():
                if not torch.distributed.is_initialized():
                    init_distributed_environment(1, 0, f"tcp://127.0.0.1:{get_open_port()}", 0, "gloo")
                    initialize_model_parallel(1, 1)
                adapter = get_model(vllm_config=config)
                with set_forward_context(None, config):
                    got = adapter.embed_multimodal(pixel_values=pixels)
            torch.testing.assert_close(got, expected(model, name, pixels), rtol=1e-4, atol=1e-4, msg=name)

    def test_positions_of_videos(self):
        """Its own correction of M-RoPE positions takes what the adapter hands over, whole and in chunks."""
        pytest.importorskip("vllm.model_executor.models.qwen2_5_vl")
        from vtkernels_serving.vllm_qwen2_5_vl import VtkernelsQwen2_5_VLForConditionalGeneration, cover_frames

        adapter = object.__new__(VtkernelsQwen2_5_VLForConditionalGeneration)  # without its towers
        vars(adapter).update(
            video_pruning_rate=0.6,
            visual=SimpleNamespace(spatial_merge_size=2),
            config=SimpleNamespace(
                vision_config=SimpleNamespace(tokens_per_second=2),
                image_token_id=90,
                video_token_id=91,
                vision_start_token_id=92,
            ),
        )
        tokens = torch.randn(4 * 12, 16)
        video = {"video_grid_thw": torch.tensor([[4, 6, 8]]), "second_per_grid_ts": torch.tensor([1.0])}
        (pruned,) = adapter._postprocess_video_embeds_evs((tokens,), video)
        kept = cover_frames(tokens.unflatten(0, (4, 12)), len(pruned))

        ids = [5, 6, 92] + [91] * len(pruned) + [93, 7, 8]
        start = torch.arange(len(ids)).expand(3, -1).contiguous()
        embeddings, whole, _ = adapter.recompute_mrope_positions(ids, [pruned], start, 0)
        assert torch.equal(embeddings[0], tokens[kept])
        places = torch.stack([kept // 12 * 2, kept % 12 // 4, kept % 4])
        assert torch.equal(whole[:, 3 : 3 + len(pruned)], 3 + places)

        _, chunk, _ = adapter.recompute_mrope_positions(ids, [pruned[:7]], start, 0)
        _, chunks, _ = adapter.recompute_mrope_positions(ids, [pruned[7:]], chunk, 3 + 7)
        assert torch.equal(chunks, whole)


class TestSglang:
    @pytest.fixture(scope="class")
    def llava(self):
        return pytest.importorskip("sglang.srt.models.llava")

    def test_registry(self, llava, monkeypatch):
        from sglang.srt.models.registry import import_model_classes
        from vtkernels_serving.sglang_models.llava import LlavaLlamaForCausalLM

        assert import_model_classes("vtkernels_serving.sglang_models", strict=True) == {
            llava.LlavaLlamaForCausalLM.__name__: LlavaLlamaForCausalLM
        }

    @pytest.mark.parametrize("name", METHODS)
    def test_model(self, llava, model, tmp_path, name):
        from sglang.srt.managers.schedule_batch import Modality, MultimodalDataItem, MultimodalInputs
        from vtkernels_serving.sglang_models.llava import LlavaLlamaForCausalLM

        tower = transformers.CLIPVisionModel(model.config.vision_config)
        tower.load_state_dict(model.model.vision_tower.state_dict())
        tower.save_pretrained(tmp_path / "clip")
        # without its language model, which wants SGLang's runtime
        adapter = object.__new__(LlavaLlamaForCausalLM)
        torch.nn.Module.__init__(adapter)
        adapter.language_model = torch.nn.Linear(1, 1)
        adapter.multi_modal_projector = model.model.multi_modal_projector
        adapter.config = transformers.LlavaConfig(vision_config=model.config.vision_config, image_token_index=models.IMAGE)
        for option, value in {
            "mm_vision_tower": str(tmp_path / "clip"),
            "mm_vision_select_layer": -2,
            "mm_vision_select_feature": "patch",
            "image_aspect_ratio": "pad",
            "vtkernels_method": name,
            "vtkernels_keep": KEEP,
        }.items():
            setattr(adapter.config, option, value)
        adapter.load_weights([])
        adapter.vision_tower.float()

        items = []
        for pad_value in (1000, 1001):
            details = {"image_sizes": [(84, 84)], "image_aspect_ratio": "pad"}
            items.append(MultimodalDataItem(modality=Modality.IMAGE, feature=None, model_specific_data=details))
            items[-1].pad_value = pad_value
        ids = array.array("q", [3, models.IMAGE, 4, models.IMAGE])
        padded = adapter.pad_input_ids(ids, MultimodalInputs(mm_items=items))
        assert list(padded) == [3, *[1000] * KEEP, 4, *[1001] * KEEP]

        pixels = models.pixels(model, 3)
        with torch.no_grad():
            got = adapter.encode_images(pixels)
        torch.testing.assert_close(got, expected(model, name, pixels), rtol=1e-4, atol=1e-4)
