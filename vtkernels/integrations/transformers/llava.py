"""LLaVA-1.5, VipLLaVA and Video-LLaVA: every image and every frame is one grid of patches, projected as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from vtkernels.integrations.transformers.layout import CLASS_TOKEN, Geometry, Layout
from vtkernels.integrations.transformers.visual import Visual


class LlavaImages(Visual):
    """Images of a ``LlavaForConditionalGeneration``."""

    clip = False  # every image has as many tokens, so too many are an error

    def check_keep(self) -> None:
        if self.clip:
            super().check_keep()
        else:
            self.layouts({}, 1)

    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout] | None:
        if not count:
            return []
        strategy = self.strategy(arguments)
        return [self.layout(strategy, lambda: self.frames(1, strategy), clip=self.clip)] * count

    def frames(self, count: int, strategy: str) -> Geometry:
        """``count`` grids one behind the other, each with the class tokens that the strategy takes in front."""
        fixed, patches = self.class_tokens(strategy), self.patches(strategy)
        candidates = torch.arange(count * patches).view(count, patches)
        class_tokens = torch.full((count, fixed), CLASS_TOKEN)
        order = torch.cat([class_tokens, candidates], dim=1).flatten()
        return Geometry(
            crops=count,
            patches=patches,
            grid=self.grid(strategy),
            order=order,
            inside=torch.ones_like(order, dtype=torch.bool),
            calls=count,
        )


class VipLlavaImages(LlavaImages):
    """Images of a ``VipLlavaForConditionalGeneration``: several feature layers, the class token always dropped."""

    def feature_layer(self, arguments: dict[str, Any]) -> int | Sequence[int]:
        names = ("vision_feature_layer", "vision_feature_layers")  # transformers 4 has the plural
        given = [*(arguments.get(name) for name in names), *(getattr(self.config, name, None) for name in names)]
        layers: list[int | Sequence[int]] = [layer for layer in given if layer is not None]
        return layers[0]

    def strategy(self, arguments: dict[str, Any]) -> str:
        return "default"


class VideoLlavaImages(LlavaImages):
    """Images of a ``VideoLlavaForConditionalGeneration``, which have a tower of their own."""

    pixels = ("pixel_values", "pixel_values_images")  # transformers 4 has the longer name
    tower_name = "image_tower"
    clip = True  # a video has more


class VideoLlavaVideos(LlavaImages):
    """Videos of a ``VideoLlavaForConditionalGeneration``: the frames in a row, class tokens included."""

    noun = "videos"
    kind = "video"
    encode = "get_video_features"
    pixels = ("pixel_values_videos",)
    tower_name = "video_tower"
    clip = True

    def strategy(self, arguments: dict[str, Any]) -> str:
        return "full"

    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout] | None:
        videos = arguments.get("pixel_values_videos")
        if videos is None:
            return None if count else []
        self.check_frames(videos)
        frames = videos.shape[1]
        return [self.layout(frames, lambda: self.frames(frames, "full"))] * count
