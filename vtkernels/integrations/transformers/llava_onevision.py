"""LLaVA-OneVision: tiles and frames that are pooled after the projector, which is where tokens become candidates."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtkernels.integrations.transformers import selection
from vtkernels.integrations.transformers.capture import Encoding
from vtkernels.integrations.transformers.layout import NEWLINE, Geometry, Layout
from vtkernels.integrations.transformers.llava_next import AnyresImages, PooledVideos
from vtkernels.integrations.transformers.visual import UNHOOKED, Visual, features_of, replace_features


class _AfterPooling(Visual):
    """Choice after projector and pooling. Captures are pooled by the model's own code, like the tokens."""

    @abstractmethod
    def pool(self, encoding: Encoding, x: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """[C, P, D] of the tower's patches as [M, D] of the candidates of ``layouts``."""

    def check(self) -> None:
        super().check()
        options = self.pruning.options
        if options.padding == "include" and "padding" in options.given:
            raise ValueError(
                f"padding must be 'exclude' for {type(self.pruning.model).__name__}, which cuts the padding off before it "
                f"pools, got 'include'"
            )

    def before_projector(self, encoding: Encoding, features: Tensor) -> Tensor:
        if "features" in self.method.needs:
            encoding.features = features.detach()
        return features

    def after_projector(self, encoding: Encoding, projected: Tensor) -> Tensor:
        return projected

    def finish(self, encoding: Encoding, result: Any) -> Any:
        pooled, layouts, needs = list(features_of(result)), encoding.layouts, self.method.needs
        places = [(layout.geometry.order >= 0).nonzero().squeeze(1).to(pooled[0].device) for layout in layouts]
        tokens = torch.cat([x[place] for x, place in zip(pooled, places, strict=True)])
        features = None
        if "features" in needs:
            if encoding.features is None:
                raise RuntimeError(UNHOOKED)
            features = self.pool(encoding, encoding.features, layouts)
        plan = selection.plan(layouts, tokens.device)
        projected = tokens.detach() if "projected" in needs else None
        encoding.kept = selection.choose(self.method, plan, tokens, self.captures(encoding, tokens.device, features, projected))
        encoding.tokens = []
        for image, (kept, layout) in enumerate(zip(encoding.kept, layouts, strict=True)):
            # transformers 4 puts the newline behind a video only later
            here = len(pooled[image]) == layout.before
            self.arrange(encoding, plan, image, kept, kept.tokens, self.newlines(layout, tokens) if here else None)
            if not here:
                encoding.ranks[-1] = torch.cat([encoding.ranks[-1], plan.extras[image]])
        self.pruning.keep_record(self, encoding)
        return replace_features(result, encoding.tokens)

    def flatten(self, encoding: Encoding, scores: Tensor, layouts: Sequence[Layout]) -> Tensor:
        return self.pool(encoding, scores.unsqueeze(-1), layouts).squeeze(-1)


class LlavaOnevisionImages(_AfterPooling, AnyresImages):
    """Images of a ``LlavaOnevisionForConditionalGeneration``: tiles become one grid, pooled where it is too large."""

    budgets = ("joint", "per_branch")

    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout] | None:
        sizes = self.sizes(arguments, count)
        if sizes is None:
            return None if count else []
        if self.grid(self.strategy(arguments)) is None:
            raise ValueError(
                f"vision_feature_select_strategy = {self.strategy(arguments)!r} does not leave {self.tower.name} a full grid "
                f"of patches; take {'default' if self.tower.prefix else 'full'!r}"
            )
        ratio, tiled = self._ratio(arguments), [True] * count
        given = arguments.get("batch_num_images")
        if given is not None:
            tiled = [int(n) == 1 for n in given for _ in range(int(n))]
            if len(tiled) != count:
                raise ValueError(
                    f"batch_num_images counts {len(tiled)} images, but there are {count}; it has one entry for every prompt "
                    f"with images"
                )
        layouts = [
            self.layout((size, ratio, tiles), partial(self._geometry, size, ratio, tiles))
            for size, tiles in zip(sizes, tiled, strict=True)
        ]
        self.check_pixels(arguments, [layout.geometry.calls for layout in layouts])
        return layouts

    def pool(self, encoding: Encoding, x: Tensor, layouts: Sequence[Layout]) -> Tensor:
        ratio = self._ratio(encoding.arguments)
        given = self.sizes(encoding.arguments, len(encoding.layouts))
        assert given is not None  # or there would be no layouts
        sizes = dict(zip(encoding.layouts, given, strict=True))
        packed = []
        for crops, layout in zip(x.split([layout.geometry.calls for layout in layouts]), layouts, strict=True):
            order = self._pack(crops, torch.tensor([sizes[layout]]), crops.new_zeros(x.shape[-1]), ratio)
            packed.append(order[(layout.geometry.order >= 0).nonzero().squeeze(1).to(x.device)])
        return torch.cat(packed)

    def _ratio(self, arguments: dict[str, Any]) -> str:
        given: str | None = arguments.get("vision_aspect_ratio")
        own: str = self.config.vision_aspect_ratio
        if given is None or given == own:
            return own
        if {"input_ids", "inputs"} & arguments.keys():
            # forward drops it, generate of transformers 5 does not
            raise ValueError(
                f"vision_aspect_ratio = {given!r} is not that of the model's config, {own!r}, and transformers heeds it in "
                f"some calls only; set model.config.vision_aspect_ratio"
            )
        return given

    def _pack(self, crops: Tensor, sizes: Tensor, newline: Tensor, ratio: str) -> Tensor:
        packed, _ = type(self.core).pack_image_features(
            self.core, [crops], sizes, image_newline=newline, vision_aspect_ratio=ratio
        )
        order: Tensor = packed[0]
        return order

    def _geometry(self, size: tuple[int, int], ratio: str, tiled: bool) -> Geometry:
        rows, columns = self.tiles(size) if tiled else (0, 0)
        calls, patches = rows * columns + 1, self.tower.grid[0] * self.tower.grid[1]
        # pooling may mix patches with patches, but never with a newline
        crops = torch.zeros(calls, patches, 1, dtype=torch.float64)
        newline = torch.tensor([1.0], dtype=torch.float64)
        is_newline = self._pack(crops, torch.tensor([size]), newline, ratio)[:, 0] == 1
        order = torch.where(is_newline, NEWLINE, (~is_newline).cumsum(0) - 1)
        return Geometry(
            crops=1,
            patches=int((~is_newline).sum()),
            grid=self.tower.grid,
            order=order,
            inside=torch.ones_like(is_newline),
            base=patches if calls > 1 else None,
            calls=calls,
            pooled=True,
            newline_is_end=calls == 1,
        )


class LlavaOnevisionVideos(_AfterPooling, PooledVideos):
    """Videos of a ``LlavaOnevisionForConditionalGeneration``: one newline stands at the end."""

    ends_with_newline = True

    def pooled_grid(self) -> tuple[int, int]:
        rows, columns = self.tower.grid
        return (math.ceil(rows / 2), math.ceil(columns / 2))

    def pool(self, encoding: Encoding, x: Tensor, layouts: Sequence[Layout]) -> Tensor:
        pooled: Tensor = self.core.apply_pooling(x)
        return pooled.flatten(0, 1)
