"""The picture that comes in and the file that goes out, checked before any long work."""

from __future__ import annotations

import os
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vtkernels.cli._errors import UsageError, first_line

_SUFFIXES = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".webp")


def read(path: str | None) -> Image.Image:
    """An RGB picture from a file, upright; None reads the photograph that comes with the package."""
    if path is None:
        with as_file(files("vtkernels") / "assets" / "coffee.jpg") as shipped:
            return read(str(shipped))
    try:
        with Image.open(path) as opened:
            opened.load()
            return to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise UsageError(f"argument --image: {path!r} does not exist; give the path of a picture") from None
    except IsADirectoryError:
        raise UsageError(f"argument --image: {path!r} is a folder; give the path of a picture") from None
    except UnidentifiedImageError:
        raise UsageError(f"argument --image: {path!r} is no picture that pillow can read; give a JPEG, PNG or WebP") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = first_line(error)
        raise UsageError(f"argument --image: {path!r} cannot be read ({reason}); give an intact JPEG, PNG or WebP") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: transparency over white, 16-bit grey scaled to 8 bits (pillow would clip it)."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def centre_square(image: Image.Image, size: int) -> Image.Image:
    """CLIP's view: the shortest side resized to ``size`` and the centre cut out, in one step.

    Cutting while resizing keeps a very long picture from being blown up first.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def normalise(image: Image.Image, mean: list[float], std: list[float]) -> Tensor:
    """RGB picture -> float32 [1, 3, H, W]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)).permute(2, 0, 1) / 255
    return ((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))[None]


def seen(pixels: Tensor, mean: list[float], std: list[float]) -> Image.Image:
    """What the model saw: normalised pixels [3, H, W] back as a picture."""
    values = pixels.float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    return Image.fromarray((values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def check_out(path: str, flag: str = "--out") -> Path:
    """The output path, if a file can be written there."""
    out = Path(path)
    if out.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"argument {flag}: {path!r} has no suffix of a picture; end it in one of {', '.join(_SUFFIXES)}")
    if out.is_dir():
        raise UsageError(f"argument {flag}: {path!r} is a folder; give a file name such as {str(out / 'demo.png')!r}")
    if not out.parent.is_dir():
        raise UsageError(f"argument {flag}: the folder {str(out.parent)!r} of {path!r} does not exist; create it first")
    existed = out.exists()
    try:
        with open(out, "ab"):
            pass
        if not existed:
            os.remove(out)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UsageError(f"argument {flag}: {path!r} cannot be written ({reason}); choose another place") from None
    return out
