"""The shapes that everything is measured at: those of real models, by name, with where each number comes from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from vtkernels.cli._errors import UsageError


@dataclass(frozen=True)
class Shape:
    """What a selector meets in one call for a model.

    rows: B, what is selected from independently (images, frames, or crops with a budget each).
    crops: calls of the tower that make up one row; a row has ``crops * patches`` tokens.
    patches: patch tokens of one call. grid: patches in an image row.
    tower, heads, head_dim: width of the vision tower and how its attention divides it; class_token: whether it has one.
    language: width of the language model, which the projector maps to.
    keeps: budgets K of a row, the first of which is the headline. source: the configuration, in words.
    """

    name: str
    rows: int
    crops: int
    patches: int
    grid: int
    tower: int
    heads: int
    head_dim: int
    class_token: bool
    language: int
    keeps: tuple[int, ...]
    source: str

    @property
    def tokens(self) -> int:
        """N: tokens of a row."""
        return self.crops * self.patches


def _clip(name: str, source: str, *, keeps: tuple[int, ...], rows: int = 1, crops: int = 1, patches: int = 576, grid: int = 24,
          language: int = 4096) -> Shape:  # fmt: skip
    """CLIP-L/14: width 1024, 16 heads of 64, a class token; 24 x 24 patches at 336 pixels."""
    return Shape(name, rows, crops, patches, grid, 1024, 16, 64, True, language, keeps, source)


def _siglip(name: str, source: str, *, keeps: tuple[int, ...], rows: int = 1, crops: int = 1, patches: int = 729,
            grid: int = 27, language: int = 3584) -> Shape:  # fmt: skip
    """SigLIP so400m/14: width 1152, 16 heads of 72, no class token; 27 x 27 patches at 384 pixels."""
    return Shape(name, rows, crops, patches, grid, 1152, 16, 72, False, language, keeps, source)


# fmt: off
SHAPES = (
    _clip("llava-1.5-7b", "LLaVA-1.5-7B: CLIP-L/14-336, Vicuna-7B; published budgets", keeps=(64, 192, 128, 32)),
    _clip("llava-1.5-13b", "LLaVA-1.5-13B: the same tower, Vicuna-13B", keeps=(64, 192, 128), language=5120),
    _clip("llava-1.5-7b-batch-4", "LLaVA-1.5-7B, 4 images", keeps=(64,), rows=4),
    _clip("llava-1.5-7b-batch-16", "LLaVA-1.5-7B, 16 images: a serving batch", keeps=(64, 192), rows=16),
    _clip("llava-1.5-7b-batch-64", "LLaVA-1.5-7B, 64 images", keeps=(64,), rows=64),
    _clip("llava-next-3-crops", "LLaVA-NeXT, an image of 672 x 336: base and 2 tiles as one row", keeps=(192, 96), crops=3),
    _clip("llava-next-4-crops", "LLaVA-NeXT, an image of 1008 x 336: base and 3 tiles as one row", keeps=(256, 128), crops=4),
    _clip("llava-next-5-crops", "LLaVA-NeXT, an image of 672 x 672: base and 2 x 2 tiles as one row; published budgets",
          keeps=(320, 640, 160), crops=5),
    _clip("llava-next-per-crop", "LLaVA-NeXT, the same image, each of the 5 crops with a budget of its own",
          keeps=(64, 128, 32), rows=5),
    _clip("llava-next-video-32", "LLaVA-NeXT-Video, 32 frames of 24 x 24 patches pooled to 12 x 12",
          keeps=(32,), rows=32, patches=144, grid=12),
    _clip("video-llava-8", "Video-LLaVA: 8 frames, LanguageBind ViT-L/14 at 224 pixels, 16 x 16 patches each",
          keeps=(32, 64), rows=8, patches=256, grid=16),
    _siglip("siglip-729", "LLaVA-OneVision-7B, one crop: SigLIP-so400m/14-384, Qwen2-7B", keeps=(128, 64)),
    _siglip("onevision-0.5b-729", "LLaVA-OneVision-0.5B, one crop: the same tower, Qwen2-0.5B", keeps=(128,), language=896),
    _siglip("onevision-5-crops", "LLaVA-OneVision-7B, base and 2 x 2 tiles as one row", keeps=(320, 640), crops=5),
    _siglip("onevision-video-32", "LLaVA-OneVision-7B, 32 frames pooled to 14 x 14",
            keeps=(32,), rows=32, patches=196, grid=14),
)
# fmt: on

# What a run measures without --shape or --all-shapes: the shape and how many of its budgets.
DEFAULT = {"llava-1.5-7b": 2, "siglip-729": 1, "llava-next-5-crops": 1, "llava-1.5-7b-batch-16": 1}
QUICK = {"llava-1.5-7b": 1}


def chosen(names: Iterable[str] | None, *, everything: bool = False, quick: bool = False) -> list[Shape]:
    """Shapes by name with all their budgets; by default those of ``DEFAULT``, or ``QUICK``, with the first of theirs."""
    known = {shape.name: shape for shape in SHAPES}
    for name in names or ():
        if name not in known:
            raise UsageError(f"argument --shape: {name!r} is no shape; choose from {', '.join(known)}")
    few = QUICK if quick else DEFAULT
    if names:
        return [known[name] for name in dict.fromkeys(names)]
    if everything:
        return list(SHAPES)
    return [replace(known[name], keeps=known[name].keeps[:count]) for name, count in few.items()]
