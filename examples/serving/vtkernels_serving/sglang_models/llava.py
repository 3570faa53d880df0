"""LLaVA-1.5 in SGLang, its images pruned behind the vision tower. Written for SGLang 0.5.23.

    SGLANG_EXTERNAL_MODEL_PACKAGE=vtkernels_serving.sglang_models python -m sglang.launch_server \\
      --model-path liuhaotian/llava-v1.5-7b --tokenizer-path llava-hf/llava-1.5-7b-hf \\
      --json-model-override-args '{"vtkernels_method": "scope", "vtkernels_keep": 64}'

The class has the name of SGLang's own, which is how checkpoints ask for it and how its image processor is found.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sglang.srt.models import llava
from torch import Tensor

from vtkernels_serving.plan import Plan


class LlavaLlamaForCausalLM(llava.LlavaLlamaForCausalLM):
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """SGLang loads the vision tower here, a model of transformers, and learns from it how many tokens an image has."""
        super().load_weights(weights)
        strategy, merge = self.vision_feature_select_strategy, self.mm_patch_merge_type
        if strategy != "patch" or merge != "flat" or "anyres" in self.image_aspect_ratio:
            raise ValueError(
                f"only images of one crop without class token are pruned here (mm_vision_select_feature = 'patch', "
                f"mm_patch_merge_type = 'flat', image_aspect_ratio = 'pad'), got {strategy!r}, {merge!r} and "
                f"{self.image_aspect_ratio!r}"
            )
        self.plan = Plan.from_config(self.config)
        side = self.num_patches_per_side
        self._grid = side, side
        # `pad_input_ids` reserves so many placeholders for an image.
        self.image_feature_len = self.plan.tokens(self.image_feature_len, self._grid)
        self._taken: dict[str, Tensor] = {}
        if self.plan.needs_attention:
            attention = self._attention()
            for name, projection in (("query", attention.q_proj), ("key", attention.k_proj)):
                projection.register_forward_hook(self._keeper(name))

    def pad_input_ids(self, input_ids: Any, image_inputs: Any) -> Any:
        if len(image_inputs.mm_items) > 16:
            raise ValueError(f"SGLang pools images where there are more than 16, which is not pruned here; got "
                             f"{len(image_inputs.mm_items)}")  # fmt: skip
        return super().pad_input_ids(input_ids, image_inputs)

    def encode_images(self, pixel_values: Tensor) -> Tensor:
        hidden = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        features = hidden[self.vision_feature_layer][:, 1:]
        query, key = (self._heads(name) for name in ("query", "key")) if self.plan.needs_attention else (None, None)
        return self.plan.prune(features, self.multi_modal_projector, query, key, self._grid)[0]

    def _attention(self) -> Any:
        """Of the layer whose output is the feature layer; transformers 5.6 moved the encoder up into the model."""
        layers = getattr(self.vision_tower, "vision_model", self.vision_tower).encoder.layers
        layer = self.vision_feature_layer
        return layers[layer if layer < 0 else layer - 1].self_attn

    def _keeper(self, name: str) -> Any:
        def keep(module: Any, args: Any, output: Tensor) -> None:
            self._taken[name] = output

        return keep

    def _heads(self, name: str) -> Tensor:
        """[B, H, T, d] of the tower's latest run."""
        return self._taken.pop(name).unflatten(-1, (-1, self._attention().head_dim)).transpose(1, 2)


EntryClass = LlavaLlamaForCausalLM
