"""Pictures of kept tokens, pixel by pixel."""

from __future__ import annotations

import pytest
import torch

np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from vtkernels import viz  # noqa: E402


def picture(width: int, height: int, mode: str = "RGB"):
    """Every pixel strongly coloured, so that a greyed one can be told."""
    return Image.new("RGB", (width, height), (220, 60, 20)).convert(mode)


def kept_patches(drawn, grid: tuple[int, int]) -> set[int]:
    """Tokens whose middle pixel still has the picture's colour."""
    rows, columns = grid
    xs, ys = np.linspace(0, drawn.width, columns + 1), np.linspace(0, drawn.height, rows + 1)
    found = set()
    for row in range(rows):
        for column in range(columns):
            red, green, _ = drawn.getpixel((int(xs[column : column + 2].mean()), int(ys[row : row + 2].mean())))
            if red - green > 100:
                found.add(row * columns + column)
    return found


@pytest.mark.parametrize(
    ("size", "grid"),
    [((336, 336), (24, 24)), ((60, 20), (2, 6)), ((20, 70), (7, 2)), ((50, 31), (3, 7))],
    ids=["clip", "wide", "tall", "not divisible"],
)
def test_exactly_the_kept_patches_keep_their_colour(size, grid):
    count = grid[0] * grid[1]
    kept = {0, count // 3, count // 2, count - 1}
    drawn = viz.draw_selection(picture(*size), torch.tensor(sorted(kept)), grid)
    assert drawn.size == (3 * size[0], 3 * size[1])
    assert kept_patches(drawn, grid) == kept


def test_empty_slots_and_nothing_kept():
    assert kept_patches(viz.draw_selection(picture(40, 40), [3, -1, -1], (4, 4)), (4, 4)) == {3}
    assert kept_patches(viz.draw_selection(picture(40, 40), [], (4, 4)), (4, 4)) == set()


def test_kept_pixels_are_untouched_and_dropped_ones_are_not():
    image = picture(40, 40)
    drawn = viz.draw_selection(image, range(8), (4, 4), outline=None, scale=1)
    assert drawn.crop((0, 0, 40, 20)).tobytes() == image.crop((0, 0, 40, 20)).tobytes()
    assert drawn.getpixel((5, 25)) != image.getpixel((5, 25))


def test_outline_runs_around_a_region_and_not_through_it():
    drawn = viz.draw_selection(picture(40, 40), [5, 6], (4, 4), outline=(0, 255, 0), scale=1)
    assert drawn.getpixel((10, 15)) == (0, 255, 0)
    assert drawn.getpixel((20, 15)) == (220, 60, 20)


@pytest.mark.parametrize("mode", ["RGBA", "L", "CMYK", "P"])
def test_any_mode(mode):
    assert viz.draw_selection(picture(28, 28, mode), [0], (2, 2)).mode == "RGB"


@pytest.mark.parametrize("index", [4, -2])
def test_index_outside_the_grid(index):
    with pytest.raises(ValueError, match=rf"indices must lie in .*got {index}"):
        viz.draw_selection(picture(28, 28), [0, index], (2, 2))


def test_saliency_is_brightest_where_it_is_highest():
    scores = torch.arange(6.0)
    drawn = viz.draw_saliency(picture(60, 40), scores, (2, 3), strength=1.0, scale=1)
    brightness = [sum(drawn.getpixel((10 + 20 * column, 10 + 20 * row))) for row in range(2) for column in range(3)]
    assert brightness == sorted(brightness)
    assert brightness[0] < brightness[-1]


def test_saliency_survives_non_finite_and_constant_scores():
    odd = viz.draw_saliency(picture(40, 40), [1.0, float("nan"), float("inf"), 2.0], (2, 2), strength=1.0, scale=1)
    assert odd.getpixel((30, 10)) == odd.getpixel((10, 30)) == odd.getpixel((10, 10))
    assert viz.draw_saliency(picture(40, 40), [float("nan")] * 4, (2, 2)).size == (120, 120)
    with pytest.raises(ValueError, match="2 x 2 = 4 entries"):
        viz.draw_saliency(picture(40, 40), [1.0] * 5, (2, 2))


def test_figure_text_stays_inside_the_figure_and_its_column(tmp_path):
    long = "a title that is far too long for the panel that it stands over, and then some more of it"
    panels = [viz.Panel(picture(30, 20), long, "64 of 576 tokens", long) for _ in range(4)]
    drawn = viz.figure(panels, title=long, caption=f"{long}\n{long}", columns=3)
    width, height = (drawn.get_size_inches() * drawn.dpi).tolist()
    boxes = [text.get_window_extent() for text in drawn.texts if text.get_text()]
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert not any(a.overlaps(b) for place, a in enumerate(boxes) for b in boxes[:place])
    viz.save(drawn, tmp_path / "figure.png")
    assert Image.open(tmp_path / "figure.png").width > 400


def test_figure_needs_a_panel():
    with pytest.raises(ValueError, match="panels"):
        viz.figure([])
