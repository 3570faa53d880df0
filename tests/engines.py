"""Stand-ins for the parts of vLLM and SGLang that examples/serving builds on: names, signatures and flow, nothing else.

They follow the versions below. :func:`differences` compares them with the source of an installed engine, which it reads and
does not import.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import nn

VERSIONS = {"vllm": "vLLM 0.33.0", "sglang": "SGLang 0.5.23"}


# ------------------------------------------------------------------------------------------------ vLLM


class BaseProcessingInfo:
    def __init__(self, ctx):
        self.ctx = ctx


class BaseLlavaProcessingInfo(BaseProcessingInfo):
    def get_hf_config(self):
        return self.ctx.config

    def get_num_image_tokens(self, *, image_width, image_height):
        vision = self.get_hf_config().vision_config
        return (vision.image_size // vision.patch_size) ** 2


class LlavaProcessingInfo(BaseLlavaProcessingInfo):
    pass


class LlavaDummyInputsBuilder:
    def __init__(self, info):
        self.info = info


class BaseMultiModalProcessor:
    def __init__(self, info, dummy_inputs):
        self.info = info

    def _get_mm_hashes(self, inputs):
        return inputs.get_mm_hashes()


class LlavaMultiModalProcessor(BaseMultiModalProcessor):
    pass


class LlavaImageEmbeddingInputs(dict):
    pass


class CLIPAttention(nn.Module):
    """Holds what the adapter looks for; queries, keys and values come from one projection that returns a tuple."""

    def __init__(self, attention, tp_size):
        super().__init__()
        self.projections = nn.ModuleList([attention.q_proj, attention.k_proj, attention.v_proj])
        self.head_dim = attention.head_dim
        self.tp_size = tp_size
        self.qkv_proj = _Fused(self.projections)


class _Fused(nn.Module):
    def __init__(self, projections):
        super().__init__()
        self.projections = projections

    def forward(self, hidden):
        return torch.cat([projection(hidden) for projection in self.projections], dim=-1), None


class _Layer(nn.Module):
    """A layer of transformers that also runs the projection which vLLM would use in it."""

    def __init__(self, layer, tp_size):
        super().__init__()
        self.layer = layer
        self.self_attn = CLIPAttention(layer.self_attn, tp_size)

    def forward(self, hidden):
        self.self_attn.qkv_proj(self.layer.layer_norm1(hidden))
        output = self.layer(hidden, attention_mask=None)
        return output[0] if isinstance(output, tuple) else output


class _Tower(nn.Module):
    """Ends behind the layer whose output is the feature layer, as vLLM builds it."""

    def __init__(self, tower, feature_layer, tp_size):
        super().__init__()
        core = getattr(tower, "vision_model", tower)
        layers = core.encoder.layers[: len(core.encoder.layers) + feature_layer + 1]
        self.vision_model = nn.Module()
        self.vision_model.encoder = nn.Module()
        self.vision_model.encoder.layers = nn.ModuleList(_Layer(layer, tp_size) for layer in layers)
        self.core = [core]

    def forward(self, pixel_values):
        hidden = self.core[0].pre_layrnorm(self.core[0].embeddings(pixel_values))
        for layer in self.vision_model.encoder.layers:
            hidden = layer(hidden)
        return hidden[:, 1:]


class VllmLlava(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.config = vllm_config.config
        self.vision_tower = _Tower(vllm_config.model.model.vision_tower, self.config.vision_feature_layer, vllm_config.tp_size)
        self.multi_modal_projector = vllm_config.model.model.multi_modal_projector

    def embed_multimodal(self, **kwargs):
        if "image_embeds" in kwargs:
            return self._process_image_input(LlavaImageEmbeddingInputs(data=kwargs["image_embeds"]))
        return self._process_image_input(kwargs)

    def _process_image_pixels(self, inputs):
        return self.vision_tower(inputs["pixel_values"])

    def _process_image_input(self, image_input):
        if isinstance(image_input, LlavaImageEmbeddingInputs):
            return image_input["data"]
        return self.multi_modal_projector(self._process_image_pixels(image_input))


VllmLlava.__name__ = "LlavaForConditionalGeneration"


class Qwen2_5_VLForConditionalGeneration(nn.Module):
    def __init__(self, *, video_pruning_rate):
        super().__init__()
        self.video_pruning_rate = video_pruning_rate
        self.visual = SimpleNamespace(spatial_merge_size=2)
        self.config = SimpleNamespace(vision_config=SimpleNamespace(tokens_per_second=2))

    def _postprocess_video_embeds_evs(self, video_embeds_split, video_input):
        raise AssertionError("EVS ran")


def compute_retained_tokens_count(tokens_per_frame, num_frames, q):
    return max(tokens_per_frame, int(tokens_per_frame * num_frames * (1 - q)))


def compute_mrope_for_media(video_size_thw, spatial_merge_size, tokens_per_second=1.0, video_second_per_grid=1.0):
    frames, height, width = video_size_thw
    rows, columns = height // spatial_merge_size, width // spatial_merge_size
    times = (torch.arange(frames) * tokens_per_second * video_second_per_grid).long()
    grid = torch.cartesian_prod(times, torch.arange(rows), torch.arange(columns))
    return torch.cat([grid, torch.full((len(grid), 1), columns)], dim=1)


class MultiModalRegistry:
    def register_processor(self, processor, *, info, dummy_inputs):
        def wrapper(model_cls):
            model_cls._processor_factory = SimpleNamespace(processor=processor, info=info, dummy_inputs=dummy_inputs)
            return model_cls

        return wrapper


class _ModelRegistry:
    def __init__(self):
        self.models = {}

    def register_model(self, model_arch, model_cls):
        self.models[model_arch] = model_cls


class Vllm:
    """What a test asks of the stand-in."""

    def __init__(self, monkeypatch, registry):
        self.monkeypatch, self.registry = monkeypatch, registry

    @property
    def registered(self):
        return self.registry.models

    def adapter(self, name):
        return _adapter(self.monkeypatch, name)

    def config(self, model, *, tp_size=1, **more):
        return SimpleNamespace(config=_config(model, more), model=model, tp_size=tp_size)

    def context(self, model, **more):
        return SimpleNamespace(config=_config(model, more))

    def inputs(self, images):
        return SimpleNamespace(get_mm_hashes=lambda: {"image": images})


def install_vllm(monkeypatch) -> Vllm:
    registry, multimodal = _ModelRegistry(), MultiModalRegistry()
    qwen = {f"Qwen2_5_VL{part}": type(part, (), {}) for part in ("DummyInputsBuilder", "MultiModalProcessor", "ProcessingInfo")}
    _install(
        monkeypatch,
        {
            "vllm": {"ModelRegistry": registry},
            "vllm.multimodal": {"MULTIMODAL_REGISTRY": multimodal},
            "vllm.multimodal.video_prune.evs": {
                "compute_mrope_for_media": compute_mrope_for_media,
                "compute_retained_tokens_count": compute_retained_tokens_count,
            },
            "vllm.model_executor.models.llava": {
                "LlavaDummyInputsBuilder": LlavaDummyInputsBuilder,
                "LlavaForConditionalGeneration": VllmLlava,
                "LlavaImageEmbeddingInputs": LlavaImageEmbeddingInputs,
                "LlavaMultiModalProcessor": LlavaMultiModalProcessor,
                "LlavaProcessingInfo": LlavaProcessingInfo,
            },
            "vllm.model_executor.models.qwen2_5_vl": {
                "Qwen2_5_VLForConditionalGeneration": Qwen2_5_VLForConditionalGeneration,
                **qwen,
            },
        },
    )
    return Vllm(monkeypatch, registry)


# ------------------------------------------------------------------------------------------------ SGLang


class LlavaBaseForCausalLM(nn.Module):
    def pad_input_ids(self, input_ids, image_inputs):
        ids = list(input_ids)
        for item in image_inputs.mm_items:
            at = ids.index(self.config.image_token_index)
            ids[at : at + 1] = [item.pad_value] * self.image_feature_len
        return ids

    def encode_images(self, pixel_values):
        raise AssertionError("encoded unpruned")

    def load_weights(self, weights):
        self.vision_tower = self.given.model.vision_tower
        self.vision_feature_layer = self.config.mm_vision_select_layer
        self.vision_feature_select_strategy = self.config.mm_vision_select_feature
        self.mm_patch_merge_type = self.config.mm_patch_merge_type
        self.image_aspect_ratio = self.config.image_aspect_ratio
        self.image_feature_len = self.num_patches_per_side**2

    @property
    def num_patches_per_side(self):
        return self.vision_tower.config.image_size // self.vision_tower.config.patch_size


class LlavaLlamaForCausalLM(LlavaBaseForCausalLM):
    def __init__(self, config, quant_config=None, prefix=""):
        super().__init__()
        self.config = config
        self.given = config.model
        self.multi_modal_projector = self.given.model.multi_modal_projector


class Sglang:
    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch

    def adapter(self, name):
        return _adapter(self.monkeypatch, name)

    def config(self, model, **more):
        original = {
            "mm_vision_select_layer": model.config.vision_feature_layer,
            "mm_vision_select_feature": "patch",
            "mm_patch_merge_type": "flat",
            "image_aspect_ratio": "pad",
            "image_token_index": model.config.image_token_index,
        }
        return SimpleNamespace(model=model, **original | more)

    def images(self, *pad_values):
        return SimpleNamespace(mm_items=[SimpleNamespace(pad_value=value) for value in pad_values])


def install_sglang(monkeypatch) -> Sglang:
    _install(monkeypatch, {"sglang.srt.models.llava": {"LlavaLlamaForCausalLM": LlavaLlamaForCausalLM}})
    return Sglang(monkeypatch)


# ------------------------------------------------------------------------------------------------ both


def _config(model, more):
    values = {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"}
    return SimpleNamespace(vision_config=model.config.vision_config, **values | more)


def _adapter(monkeypatch, name):
    """A module of the example, imported anew against the stand-ins."""
    full = f"vtkernels_serving.{name}"
    monkeypatch.delitem(sys.modules, full, raising=False)
    module = importlib.import_module(full)
    monkeypatch.setitem(sys.modules, full, module)  # so that it is forgotten at the end
    return module


def _install(monkeypatch, modules):
    for name, members in modules.items():
        parts = name.split(".")
        for depth in range(1, len(parts) + 1):
            path = ".".join(parts[:depth])
            if not isinstance(sys.modules.get(path), _StandIn):
                monkeypatch.setitem(sys.modules, path, _StandIn(path))
            if depth > 1:
                setattr(sys.modules[".".join(parts[: depth - 1])], parts[depth - 1], sys.modules[path])
        vars(sys.modules[name]).update(members)


class _StandIn(ModuleType):
    __path__ = ()


# What the adapters override or call: where it is in the engine, and the stand-in whose signature it must have.
SOURCES = {
    "vllm": {
        "model_executor/models/llava.py": [
            BaseLlavaProcessingInfo.get_num_image_tokens,
            BaseLlavaProcessingInfo.get_hf_config,
            (VllmLlava.__init__, "LlavaForConditionalGeneration.__init__"),
            (VllmLlava.embed_multimodal, "LlavaForConditionalGeneration.embed_multimodal"),
            (VllmLlava._process_image_pixels, "LlavaForConditionalGeneration._process_image_pixels"),
            (VllmLlava._process_image_input, "LlavaForConditionalGeneration._process_image_input"),
        ],
        "model_executor/models/clip.py": ["self.head_dim =", "self.tp_size =", "self.qkv_proj ="],
        "model_executor/models/qwen2_5_vl.py": [
            Qwen2_5_VLForConditionalGeneration._postprocess_video_embeds_evs,
            "self.video_pruning_rate =",
        ],
        "multimodal/processing/processor.py": [BaseMultiModalProcessor._get_mm_hashes, BaseMultiModalProcessor.__init__],
        "model_executor/models/interfaces.py": ["supports_encoder_tp_data: ClassVar[bool]", "supports_tower_connector_lora"],
        "multimodal/registry.py": [MultiModalRegistry.register_processor],
        "multimodal/video_prune/evs.py": [compute_retained_tokens_count, compute_mrope_for_media],
        "model_executor/models/registry.py": [_ModelRegistry.register_model],
    },
    "sglang": {
        "srt/models/llava.py": [
            LlavaBaseForCausalLM.pad_input_ids,
            LlavaBaseForCausalLM.encode_images,
            LlavaBaseForCausalLM.load_weights,
            LlavaBaseForCausalLM.num_patches_per_side.fget,
            LlavaLlamaForCausalLM.__init__,
            "self.image_feature_len =",
            "self.vision_feature_layer =",
            "self.vision_feature_select_strategy =",
        ],
    },
}


def differences(engine: str) -> list[str] | None:
    """What the installed engine has otherwise than the stand-ins; None where it is not installed."""
    spec = importlib.util.find_spec(engine)
    if spec is None or spec.origin is None:
        return None
    found = []
    for path, wanted in SOURCES[engine].items():
        text = (Path(spec.origin).parent / path).read_text()
        signatures = _signatures(ast.parse(text))
        for item in wanted:
            if isinstance(item, str):
                found += [] if item in text else [f"{path}: {item!r} is not there"]
                continue
            function, name = item if isinstance(item, tuple) else (item, item.__qualname__)
            have, need = signatures.get(name), list(inspect.signature(function).parameters)
            if have != need:
                found.append(f"{path}: {name} takes {have}, not {need}")
    return found


def _signatures(tree: ast.Module) -> dict[str, list[str]]:
    found = {}
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        for member in members:
            if isinstance(member, ast.FunctionDef):
                taken = member.args
                names = [a.arg for a in taken.posonlyargs + taken.args + taken.kwonlyargs]
                found[prefix + member.name] = names + ([taken.kwarg.arg] if taken.kwarg else [])
    return found
