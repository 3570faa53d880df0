"""Every kind of file becomes the RGB picture that a viewer shows, cut as the vision tower wants it."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from vtkernels.cli import _picture  # noqa: E402

# The one that needs no torchvision: a class of its own from transformers 5 on, the default before.
PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
def test_colour_modes(tmp_path, mode):
    path = tmp_path / "picture.tif"
    source = Image.new("RGB", (8, 6), (204, 204, 204)).convert(mode)
    source.save(path)
    read = _picture.read(str(path))
    assert (read.mode, read.size) == ("RGB", (8, 6))
    assert all(abs(value - 204) <= 2 for value in read.getpixel((3, 3)))


def test_transparency_is_white(tmp_path):
    for name, image in (("a.png", Image.new("RGBA", (4, 4), (9, 9, 9, 0))), ("b.png", Image.new("LA", (4, 4), (9, 0)))):
        image.save(tmp_path / name)
        assert _picture.read(str(tmp_path / name)).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert _picture.read(str(tmp_path / "deep.png")).getpixel((0, 0)) == (128, 128, 128)


def test_orientation(tmp_path):
    image = Image.new("RGB", (20, 10), "red")
    image.paste("blue", (0, 0, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    read = _picture.read(str(tmp_path / "turned.png"))
    assert read.size == (10, 20)
    assert read.getpixel((5, 2)) == (0, 0, 255)


@pytest.mark.parametrize("size", [(600, 400), (30, 90), (336, 336), (1, 4000)])
def test_crop_is_clips(size):
    """The one-step crop against the image processor's resize and crop, which round to whole pixels in between."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, 255 - x], -1).astype(np.uint8))
    if max(size) < 1000:
        processor = PROCESSOR(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
        wanted = torch.as_tensor(np.array(processor(image)["pixel_values"]))[0]
        mean, std = processor.image_mean, processor.image_std
        got = _picture.normalise(_picture.centre_square(image, 336), mean, std)[0]
        assert (got - wanted).abs().mean() < 0.02
    assert _picture.centre_square(image, 336).size == (336, 336)


def test_what_the_model_saw_is_the_crop():
    image = _picture.centre_square(_picture.read(None), 336)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    back = _picture.seen(_picture.normalise(image, mean, std)[0], mean, std)
    assert np.abs(np.asarray(back, dtype=int) - np.asarray(image, dtype=int)).max() <= 1
