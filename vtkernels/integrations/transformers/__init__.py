"""Hugging Face transformers, 4.57 to 5.x. Nothing here imports transformers before :func:`visuals_of` is called."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vtkernels.integrations.transformers.llava import LlavaImages, VideoLlavaImages, VideoLlavaVideos, VipLlavaImages
from vtkernels.integrations.transformers.llava_next import LlavaNextImages, LlavaNextVideoVideos
from vtkernels.integrations.transformers.llava_onevision import LlavaOnevisionImages, LlavaOnevisionVideos
from vtkernels.integrations.transformers.visual import Visual

if TYPE_CHECKING:
    from torch import nn

__all__ = ["visuals_of"]

# Class of the model -> the kinds of visual input that it takes.
_FAMILIES: dict[str, tuple[type[Visual], ...]] = {
    "LlavaForConditionalGeneration": (LlavaImages,),
    "LlavaNextForConditionalGeneration": (LlavaNextImages,),
    "LlavaNextVideoForConditionalGeneration": (LlavaNextImages, LlavaNextVideoVideos),
    "LlavaOnevisionForConditionalGeneration": (LlavaOnevisionImages, LlavaOnevisionVideos),
    "VideoLlavaForConditionalGeneration": (VideoLlavaImages, VideoLlavaVideos),
    "VipLlavaForConditionalGeneration": (VipLlavaImages,),
}
_OLDEST, _BELOW = (4, 57), (6, 0)


def visuals_of(model: nn.Module) -> tuple[type[Visual], ...]:
    """The kinds of visual input of a model.

    Raises:
        TypeError: its class is not supported.
        ImportError: transformers is missing or outside the supported range.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("vt.prune needs transformers: pip install 'vtkernels[hf]'") from error
    version = transformers.__version__
    if not _OLDEST <= tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _BELOW:
        raise ImportError(f"vt.prune supports transformers 4.57 to 5.x, found {version}: pip install 'transformers>=4.57,<6'")
    for name, visuals in _FAMILIES.items():
        if isinstance(model, getattr(transformers, name)):
            return visuals
    raise TypeError(
        f"vt.prune does not support {type(model).__name__}; supported: {', '.join(_FAMILIES)}, and the models of "
        f"the original LLaVA code base. Of a wrapped model (torch.compile, DataParallel) prune the one inside, before wrapping "
        f"it"
    )
