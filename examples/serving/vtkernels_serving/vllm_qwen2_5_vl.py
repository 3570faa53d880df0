"""Qwen2.5-VL in vLLM: its videos pruned by coverage, in place of EVS. Written for vLLM 0.33.0.

    vllm serve Qwen/Qwen2.5-VL-7B-Instruct --video-pruning-rate 0.75 \\
      --hf-overrides '{"architectures": ["VtkernelsQwen2_5_VLForConditionalGeneration"]}'

This is vLLM's own interface for models that prune (``SupportsMultiModalPruning``). The number of tokens that are left is
vLLM's function of the rate and the size; each of them carries its M-RoPE position in four more channels, from which
``recompute_mrope_positions`` corrects the prompt, a chunk of the prefill at a time. Only the choice is ours: from every frame
the tokens that cover it best, where EVS keeps those that differ most from the frame before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.video_prune.evs import compute_mrope_for_media, compute_retained_tokens_count

import vtkernels as vt


@MULTIMODAL_REGISTRY.register_processor(
    Qwen2_5_VLMultiModalProcessor, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class VtkernelsQwen2_5_VLForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    def _postprocess_video_embeds_evs(self, video_embeds_split: tuple[Tensor, ...], video_input: Any) -> tuple[Tensor, ...]:
        merge = self.visual.spatial_merge_size
        seconds = video_input.get("second_per_grid_ts")
        if seconds is None:
            raise ValueError("second_per_grid_ts is missing: the positions of a pruned video need it")
        pruned = []
        sizes = video_input["video_grid_thw"].tolist()
        for tokens, size, second in zip(video_embeds_split, sizes, seconds.long().tolist(), strict=True):
            frames = size[0]
            k = compute_retained_tokens_count(len(tokens) // frames, frames, self.video_pruning_rate)
            indices = cover_frames(tokens.unflatten(0, (frames, -1)), k)
            positions = compute_mrope_for_media(
                size,
                merge,
                tokens_per_second=self.config.vision_config.tokens_per_second,
                video_second_per_grid=second,
            ).to(tokens.device, non_blocking=True)
            pruned.append(torch.cat([tokens[indices], positions[indices]], dim=1))
        return tuple(pruned)


def cover_frames(frames: Tensor, k: int) -> Tensor:
    """int64 [k], ascending: the tokens of [T, P, D] that cover their frame; k is shared equally, the first take the rest."""
    count, patches, _ = frames.shape
    each, longer = divmod(k, count)
    # One call for unequal shares: the first j choices of the greedy loop are its answer for j.
    order = vt.scope_select(frames, None, min(each + 1, patches), sort=False)
    order = order + torch.arange(count, device=frames.device)[:, None] * patches
    return torch.cat([order[:longer, : each + 1].flatten(), order[longer:, :each].flatten()]).sort().values
