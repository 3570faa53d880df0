"""Every kind of file becomes the RGB picture that a viewer shows, cut as the vision tower wants it."""

from __future__ import annotations

import os
import random
import struct
import warnings
import zlib

import pytest
import torch

transformers = pytest.importorskip("transformers")
np = pytest.importorskip("numpy")
Image = pytest.importorskip("PIL.Image")

from vtkernels.cli import _picture  # noqa: E402
from vtkernels.cli._errors import UsageError  # noqa: E402

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


@pytest.fixture(params=["deep.png", "deep.tif"])
def deep(request, tmp_path):
    """16 bits per channel, grey from black to white."""
    path = tmp_path / request.param
    Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)).save(path)
    return path


def test_sixteen_bit_files_keep_their_range(deep):
    grey = np.asarray(_picture.read(str(deep)))[..., 0]
    assert (grey.min(), grey.max()) == (0, 255)
    assert (np.diff(grey.reshape(-1).astype(int)) > 0).all()


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "print.jpg"
    Image.new("RGB", (16, 16), (200, 40, 90)).convert("CMYK").save(path, quality=95)
    assert all(abs(a - b) <= 6 for a, b in zip(_picture.read(str(path)).getpixel((8, 8)), (200, 40, 90), strict=True))


def test_a_phones_second_picture_is_no_animation(tmp_path):
    path = tmp_path / "phone.jpg"
    photograph, depth = Image.new("RGB", (12, 8), "red"), Image.new("RGB", (6, 4), "blue")
    photograph.save(path, format="MPO", save_all=True, append_images=[depth])
    read = _picture.read(str(path))
    assert read.size == (12, 8) and read.getpixel((4, 4))[0] > 200


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp", "pages.tif"])
def test_an_animation_is_refused(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert "is animated or has several pages; save the one" in refusal(tmp_path / name)


@pytest.mark.parametrize("name", ["still.gif", "still.webp"])
def test_one_frame_is_a_picture(tmp_path, name):
    Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    assert _picture.read(str(tmp_path / name)).size == (8, 8)


@pytest.mark.parametrize("mode", ["F", "I"])
def test_thirty_two_bits_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4)).save(tmp_path / "wide.tif")
    assert "has 32 bits per channel" in refusal(tmp_path / "wide.tif")


@pytest.mark.parametrize("size", [(9000, 9000), (60000, 60000)])
def test_a_huge_picture_is_refused_by_its_header(tmp_path, size):
    """A few dozen bytes that claim gigabytes of pixels."""
    path = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", *size)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "more than the 80,000,000 pixels that are read; make it smaller first" in refusal(path)


def test_the_largest_that_is_read(tmp_path, monkeypatch):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr(_picture, "MAX_PIXELS", 64)
    assert _picture.read(str(tmp_path / "a.png")).size == (8, 8)
    monkeypatch.setattr(_picture, "MAX_PIXELS", 63)
    assert "is 8 x 8, more than" in refusal(tmp_path / "a.png")


def test_a_format_that_starts_another_program_is_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "drawing.eps")
    assert "is no picture that can be read" in refusal(tmp_path / "drawing.eps")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes of POSIX")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert "is no regular file" in refusal(tmp_path / "pipe.png")


@pytest.mark.parametrize("path", ["", "\0", "a\0b.png", "x" * 5000])
def test_odd_paths(path):
    assert repr(path) in refusal(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tif", "a.ppm"])
def test_a_damaged_file_is_read_or_refused_in_words(tmp_path, name):
    """Bytes changed, cut out and cut off at random."""
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    intact, dice, refused = path.read_bytes(), random.Random(name), 0
    for _ in range(150):
        data = bytearray(intact)
        for _ in range(dice.choice((1, 2, 8))):
            place = dice.randrange(min(len(data), dice.choice((80, 10**6))))
            if dice.random() < 0.8:
                data[place] = dice.randrange(256)
            elif dice.random() < 0.5:
                del data[place + 1 : place + dice.randrange(2, 20)]
            else:
                del data[place + 1 :]  # one byte at least is left
        path.write_bytes(data)
        try:
            assert _picture.read(str(path)).mode == "RGB"
        except UsageError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused


def refusal(path) -> str:
    with pytest.raises(UsageError) as refused:
        _picture.read(str(path))
    return str(refused.value)
