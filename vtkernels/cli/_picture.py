"""The picture that comes in: any file a stranger may give, as upright RGB or as an error that says what is wrong with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vtkernels.cli._errors import UsageError, first_line

# Pillow reads many more, EPS among them, for which it starts another program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_PIXELS = 80_000_000  # 240 MB as RGB; pillow's own warning comes a little later
_TOO_LARGE = f"more than the {MAX_PIXELS:,} pixels that are read; make it smaller first"


def read(path: str | None) -> Image.Image:
    """An RGB picture from a file, upright; None reads the photograph that comes with the package."""
    if path is None:
        with as_file(files("vtkernels") / "assets" / "coffee.jpg") as shipped:
            return read(str(shipped))
    try:
        if Path(path).exists() and not (Path(path).is_file() or Path(path).is_dir()):
            raise UsageError(f"argument --image: {path!r} is no regular file; save the picture to one first")
        with _unwarned(), Image.open(path, formats=_FORMATS) as opened:
            _check(opened, path)
            opened.load()
            return to_rgb(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise UsageError(f"argument --image: {path!r} does not exist; give the path of a picture") from None
    except IsADirectoryError:
        raise UsageError(f"argument --image: {path!r} is a folder; give the path of a picture") from None
    except UnidentifiedImageError:
        raise UsageError(f"argument --image: {path!r} is no picture that can be read; give a JPEG, PNG or WebP") from None
    except Image.DecompressionBombError:  # before its size is known here
        raise UsageError(f"argument --image: {path!r} holds {_TOO_LARGE}") from None
    except (OSError, SyntaxError, ValueError) as error:
        reason = first_line(error)
        raise UsageError(f"argument --image: {path!r} cannot be read ({reason}); give an intact JPEG, PNG or WebP") from None


@contextmanager
def _unwarned() -> Iterator[None]:
    """Without pillow's warnings of odd metadata, and of a size that the check below refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(opened: Image.Image, path: str) -> None:
    """What the header says, before a pixel is decoded."""
    given = f"argument --image: {path!r}"
    if opened.width * opened.height > MAX_PIXELS:
        raise UsageError(f"{given} is {opened.width} x {opened.height}, {_TOO_LARGE}")
    # A phone's JPEG may carry a second picture, for depth; its first is the photograph.
    if opened.format != "MPO" and getattr(opened, "is_animated", False):
        raise UsageError(f"{given} is animated or has several pages; save the one that is meant as a picture of its own")
    if opened.mode == "F" or (opened.mode == "I" and opened.format != "PNG"):
        raise UsageError(f"{given} has 32 bits per channel, whose range is not known; save it with 8 or 16")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: transparency over white, 16-bit grey scaled to 8 bits (pillow would clip it)."""
    if image.mode.startswith("I"):  # "I" is how older versions of pillow open a 16-bit PNG
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
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
