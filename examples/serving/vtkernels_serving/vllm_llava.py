"""LLaVA-1.5 in vLLM, its images pruned behind the vision tower. Written for vLLM 0.33.0.

    vllm serve llava-hf/llava-1.5-7b-hf --hf-overrides \\
      '{"architectures": ["VtkernelsLlavaForConditionalGeneration"], "vtkernels_method": "scope", "vtkernels_keep": 64}'

LLaVA's language model has plain positions, so vLLM's interface for pruning models, which is about M-RoPE, is not needed: the
processor reserves as many placeholders as tokens will be left, and the model hands over as many.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaImageEmbeddingInputs,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtkernels_serving.plan import Plan


class ProcessingInfo(LlavaProcessingInfo):
    """Says how many tokens an image has in the prompt, when prompts are built and when memory is profiled."""

    def get_num_image_tokens(self, *, image_width: int, image_height: int) -> int:
        patches = super().get_num_image_tokens(image_width=image_width, image_height=image_height)
        return Plan.from_config(self.get_hf_config()).tokens(patches, _grid(patches))


class MultiModalProcessor(LlavaMultiModalProcessor):
    """Names images in vLLM's caches of processor outputs, encoder outputs and prefixes."""

    def _get_mm_hashes(self, inputs: Any) -> dict[str, list[str]]:
        key = Plan.from_config(self.info.get_hf_config()).key
        hashes = super()._get_mm_hashes(inputs)
        return {modality: [f"{known}-{key}" for known in items] for modality, items in hashes.items()}


@MULTIMODAL_REGISTRY.register_processor(MultiModalProcessor, info=ProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder)
class VtkernelsLlavaForConditionalGeneration(LlavaForConditionalGeneration):
    # An adapter of the tower would be told of as many tokens as are left, and the tower has them all.
    supports_tower_connector_lora = False
    # With --mm-encoder-tp-mode data every GPU has the whole tower, and all of them run it on all images.
    supports_encoder_tp_data = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        kind, strategy = self.config.vision_config.model_type, self.config.vision_feature_select_strategy
        if kind != "clip_vision_model" or strategy != "default":
            raise ValueError(
                f"only a CLIP tower whose class token is dropped is pruned here (vision_feature_select_strategy = 'default'), "
                f"got {kind!r} and {strategy!r}"
            )
        self.plan = Plan.from_config(self.config)
        self._qkv: Tensor | None = None
        if self.plan.needs_attention:
            # vLLM builds no layer behind the one whose output is the feature layer.
            attention = self.vision_tower.vision_model.encoder.layers[-1].self_attn
            if attention.tp_size != 1:
                raise ValueError(
                    f"{type(self.plan.method).__name__} adds up all heads, but the tower's are split over {attention.tp_size} "
                    f"GPUs; run with --mm-encoder-tp-mode data"
                )
            self._head_dim = attention.head_dim
            attention.qkv_proj.register_forward_hook(self._keep_qkv)

    def _process_image_input(self, image_input: Any) -> Tensor | tuple[Tensor, ...]:
        if isinstance(image_input, LlavaImageEmbeddingInputs):  # the caller's own, as many as he says
            return super()._process_image_input(image_input)
        features = self._process_image_pixels(image_input)
        query, key = self._taken() if self.plan.needs_attention else (None, None)
        return self.plan.prune(features, self.multi_modal_projector, query, key, _grid(features.shape[1]))[0]

    def _keep_qkv(self, module: Any, args: Any, output: tuple[Tensor, Any]) -> None:
        self._qkv = output[0]

    def _taken(self) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, H, T, d] of the tower's latest run."""
        query, key, _ = self._qkv.unflatten(-1, (3, -1, self._head_dim)).permute(2, 0, 3, 1, 4)
        self._qkv = None
        return query, key


def _grid(patches: int) -> tuple[int, int]:
    side = round(patches**0.5)
    return side, side
