"""LLaVA-NeXT and LLaVA-NeXT-Video: a base crop and a grid of tiles, cut to the shape of the image; pooled frames."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vtkernels.integrations.transformers.attach import Attachments
from vtkernels.integrations.transformers.capture import ENCODING, Encoding
from vtkernels.integrations.transformers.layout import NEWLINE, Geometry, Layout
from vtkernels.integrations.transformers.visual import Visual


class AnyresImages(Visual):
    """Images in tiles. How a model orders their tokens is learned by having its own code order their indices."""

    def sizes(self, arguments: dict[str, Any], count: int) -> list[tuple[int, int]] | None:
        """Height and width in pixels of every image, as the processor found it.

        Raises:
            ValueError: the call has another number of sizes than images.
        """
        given = arguments.get("image_sizes")
        if given is None:
            if self.count(arguments):
                raise ValueError("image_sizes is missing: give everything that the processor returned, not only pixel_values")
            return None
        pixels = arguments.get("pixel_values")
        if pixels is not None and getattr(pixels, "ndim", 0) not in (4, 5):
            got = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
            raise ValueError(f"pixel_values must be a tensor [images, crops, 3, H, W] or [crops, 3, H, W], got {got}")
        try:
            sizes = [(int(height), int(width)) for height, width in given]
        except (TypeError, ValueError):
            got = f"shape {list(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise ValueError(f"image_sizes must hold height and width of every image, [images, 2], got {got}") from None
        if len(sizes) != count:
            raise ValueError(
                f"image_sizes has {len(sizes)} rows for {count} images; give pixel_values and image_sizes of the same images"
            )
        for image, size in enumerate(sizes):
            if min(size) < 1:
                raise ValueError(f"image_sizes must be positive, got {size[0]} x {size[1]} for image {image}")
        return sizes

    def count(self, arguments: dict[str, Any]) -> int:
        """Where crops are stacked without a dimension of their own, the sizes tell the images."""
        pixels, sizes = arguments.get("pixel_values"), arguments.get("image_sizes")
        if pixels is not None and sizes is not None and getattr(pixels, "ndim", 5) == 4:
            return len(sizes)
        return super().count(arguments)

    def tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles that the processor cuts an image into."""
        rows, columns = self._helper("get_anyres_image_grid_shape")(
            size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
        )
        return rows, columns

    def check_pixels(self, arguments: dict[str, Any], crops: list[int]) -> None:
        """That the crops are those that the sizes and the config promise.

        Raises:
            ValueError: they are not.
        """
        pixels, side = arguments.get("pixel_values"), self.config.vision_config.image_size
        if not isinstance(pixels, Tensor):
            return
        advice = "; the processor must have the image size, patch size and image_grid_pinpoints of the model's config"
        if tuple(pixels.shape[-2:]) != (side, side):
            raise ValueError(
                f"pixel_values has crops of {pixels.shape[-2]} x {pixels.shape[-1]} pixels, the vision tower takes "
                f"{side} x {side}{advice}"
            )
        if pixels.dim() == 5 and pixels.shape[1] < max(crops, default=0):
            image = next(i for i, n in enumerate(crops) if n > pixels.shape[1])
            raise ValueError(
                f"pixel_values has {pixels.shape[1]} crops per image, but image {image} of size {self._size(arguments, image)} "
                f"makes {crops[image]}{advice}"
            )
        if pixels.dim() == 4 and pixels.shape[0] != sum(crops):
            raise ValueError(f"pixel_values has {pixels.shape[0]} crops, but image_sizes make {sum(crops)}{advice}")

    def learn(self, size: tuple[int, int], pack: Callable[[list[Tensor], Tensor, Tensor], Tensor]) -> Geometry:
        """The geometry of an image, from what ``pack(crops, image_sizes, newline)`` makes of the indices of its tokens."""
        rows, columns = self.tiles(size)
        crops, patches = rows * columns + 1, self.tower.grid[0] * self.tower.grid[1]
        index = torch.arange(crops * patches, dtype=torch.float64).view(crops, patches, 1)
        newline = torch.tensor([float(NEWLINE)], dtype=torch.float64)

        def order(height: int, width: int) -> Tensor:
            return pack([index], torch.tensor([[height, width]]), newline)[:, 0].long()

        side = self.config.vision_config.image_size
        packed, canvas = order(*size), order(rows * side, columns * side)  # an image that fills its tiles has no padding
        if not canvas[canvas >= 0].sort().values.equal(torch.arange(crops * patches)):
            raise RuntimeError(f"{type(self.core).__name__}.pack_image_features does not order tokens as vt.prune expects")
        return Geometry(
            crops=crops,
            patches=patches,
            grid=self.tower.grid,
            order=canvas,
            inside=_inside(canvas, packed, patches),
            base=patches,
            calls=crops,
        )

    def _size(self, arguments: dict[str, Any], image: int) -> str:
        return " x ".join(str(int(x)) for x in arguments["image_sizes"][image])

    def _helper(self, name: str) -> Any:
        """A function of the module that defines the model's class (or that of a class it derives from)."""
        for kind in type(self.core).__mro__:
            if hasattr(sys.modules[kind.__module__], name):
                return getattr(sys.modules[kind.__module__], name)
        raise RuntimeError(f"{type(self.core).__name__} comes without {name}")


class LlavaNextImages(AnyresImages):
    """Images of a ``LlavaNextForConditionalGeneration``: every patch of every crop is a candidate."""

    def check(self) -> None:
        super().check()
        options, name = self.pruning.options, type(self.method).__name__
        if options.positions == "original" and options.padding == "include":
            if "padding" not in options.given:
                why = f" ({name} includes the padding unless padding says otherwise)"
            else:
                why = "" if "positions" in options.given else f" ({name} takes those positions unless positions says otherwise)"
            raise ValueError(
                f"positions = 'original' needs padding = 'exclude': a patch of the padding has no position in the whole "
                f"prompt{why}"
            )

    def attach(self, attachments: Attachments) -> None:
        super().attach(attachments)
        attachments.wrap(self.core, "pack_image_features", self._pack)

    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout] | None:
        sizes = self.sizes(arguments, count)
        if sizes is None:
            return None if count else []
        strategy = self.strategy(arguments)
        if self.grid(strategy) is None or self.class_tokens(strategy):
            raise ValueError(
                f"vision_feature_select_strategy = {strategy!r} does not leave {self.tower.name} a full grid of patches, which "
                f"{type(self.pruning.model).__name__} needs; take {'default' if self.tower.prefix else 'full'!r}"
            )
        layouts = [self.layout(size, partial(self.learn, size, self._order)) for size in sizes]
        self.check_pixels(arguments, [layout.geometry.crops for layout in layouts])
        return layouts

    def _order(self, crops: list[Tensor], sizes: Tensor, newline: Tensor) -> Tensor:
        packed: Tensor = type(self.core).pack_image_features(self.core, crops, sizes, "default", newline)[0][0]
        return packed

    def _pack(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """Inside a pruned encoding there is nothing left to pack."""
        encoding = ENCODING.get()
        if encoding is None or encoding.visual is not self or encoding.tokens is None:
            return original(*args, **kwargs)
        return encoding.tokens, torch.tensor([len(tokens) for tokens in encoding.tokens])


class PooledVideos(Visual):
    """Videos whose frames are pooled and stand one behind the other."""

    noun = "videos"
    kind = "video"
    encode = "get_video_features"
    pixels = ("pixel_values_videos", "pixel_values")  # transformers 4 calls its own method with the shorter name
    ends_with_newline = False

    @abstractmethod
    def pooled_grid(self) -> tuple[int, int]:
        """Rows and columns of a pooled frame."""

    def videos(self, arguments: dict[str, Any]) -> Tensor | None:
        """[B, frames, 3, H, W]; ``pixel_values`` holds them only in a call of transformers 4's ``get_video_features``."""
        of_model = {"pixel_values_videos", "input_ids", "inputs", "inputs_embeds"} & arguments.keys()
        return arguments.get("pixel_values_videos" if of_model else "pixel_values")

    def count(self, arguments: dict[str, Any]) -> int:
        videos = self.videos(arguments)
        return 0 if videos is None else len(videos)

    def layouts(self, arguments: dict[str, Any], count: int) -> list[Layout] | None:
        videos = self.videos(arguments)
        if videos is None:
            return None if count else []
        if self.grid(self.strategy(arguments)) is None:
            raise ValueError(
                f"vision_feature_select_strategy = {self.strategy(arguments)!r} does not leave a full grid of patches to pool"
            )
        self.check_frames(videos)
        if tuple(videos.shape[-2:]) != (self.config.vision_config.image_size,) * 2:
            raise ValueError(
                f"{self.pixels[0]} has frames of {videos.shape[-2]} x {videos.shape[-1]} pixels, the vision tower takes "
                f"{self.config.vision_config.image_size} x {self.config.vision_config.image_size}; the processor must have the "
                f"image size of the model's config"
            )
        frames = videos.shape[1]
        return [self.layout(frames, lambda: self._frames(frames))] * count

    def _frames(self, count: int) -> Geometry:
        rows, columns = self.pooled_grid()
        order = torch.arange(count * rows * columns)
        if self.ends_with_newline:
            order = torch.cat([order, torch.tensor([NEWLINE])])
        return Geometry(
            crops=count,
            patches=rows * columns,
            grid=(rows, columns),
            order=order,
            inside=torch.ones_like(order, dtype=torch.bool),
            calls=count,
            pooled=True,
            newline_is_end=self.ends_with_newline,
        )


class LlavaNextVideoVideos(PooledVideos):
    """Videos of a ``LlavaNextVideoForConditionalGeneration``, pooled before the projector."""

    def pooled_grid(self) -> tuple[int, int]:
        stride = self.config.spatial_pool_stride
        return (self.tower.grid[0] // stride, self.tower.grid[1] // stride)

    def flatten(self, encoding: Encoding, scores: Tensor, layouts: Sequence[Layout]) -> Tensor:
        """The score of a pooled token is the mean over its patches."""
        return functional.avg_pool2d(scores.unflatten(1, self.tower.grid), self.config.spatial_pool_stride).flatten()


def _inside(canvas: Tensor, packed: Tensor, patches: int) -> Tensor:
    """Which entries of the whole canvas the packed order has: its patches, and the newlines of the rows that are left."""
    inside = torch.isin(canvas, packed[packed >= 0])
    newline = canvas == NEWLINE
    row = newline.cumsum(0)  # of a patch, not of a newline
    rows = row[inside & (canvas >= patches)].unique()  # of the grid; the base crop is no row
    count = int((packed == NEWLINE).sum())
    if len(rows) != count:  # an image so narrow that nothing is left of its rows but the newlines
        rows = torch.arange(count)
    inside[newline.nonzero().squeeze(1)[rows]] = True
    return inside
