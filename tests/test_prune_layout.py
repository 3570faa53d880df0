"""Budgets, options, and where the tokens of an image lie, without running a model."""

import itertools
import math
import random

import models
import packing
import pytest
import torch
from golden import GPRUNE_CASES, gprune_case
from models import Image

pytest.importorskip("transformers")

from vtkernels.integrations.transformers import budget, selection
from vtkernels.integrations.transformers.layout import CLASS_TOKEN, NEWLINE, Geometry, lay_out
from vtkernels.integrations.transformers.llava_next import LlavaNextImages
from vtkernels.integrations.transformers.llava_onevision import LlavaOnevisionImages
from vtkernels.integrations.transformers.options import resolve
from vtkernels.integrations.transformers.pruning import Pruning
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Policy, Random, Scope, Selection, TopAttention, Uniform

CPU = torch.device("cpu")


def options(method, **wanted):
    return resolve(method, **dict.fromkeys(("budget", "positions", "newlines", "padding")) | wanted)


def layouts(model, sizes, method, keep, **wanted):
    """The layouts of images of some sizes, as a pruned model makes them."""
    kind = LlavaOnevisionImages if "Onevision" in type(model).__name__ else LlavaNextImages
    visual = kind(Pruning(model, method, keep, options(method, **wanted), (kind,)))
    return visual.layouts({"image_sizes": torch.tensor(sizes)}, len(sizes))


@pytest.fixture(scope="module")
def real():
    """LLaVA-NeXT's real numbers of patches: 24 x 24 per crop, up to 2 x 2 tiles or three in a row."""
    return models.llava_next(layers=2, side=24)


# -------------------------------------------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("total", "sizes", "step", "expected"),
    [
        (160, [576] * 5, 1, [32] * 5),
        (160, [576] * 3, 1, [54, 53, 53]),  # what is left goes to the first
        (160, [576] * 4, 1, [40] * 4),
        (3, [576] * 5, 1, [1, 1, 1, 0, 0]),
        (30, [16, 4, 16], 1, [13, 4, 13]),  # a crop without room leaves its share to the others
        (31, [16, 4, 16], 1, [14, 4, 13]),
        (36, [16, 4, 16], 1, [16, 4, 16]),
        (5, [0, 16], 1, [0, 5]),
        (40, [16] * 3, 4, [16, 12, 12]),  # whole rows
        (36, [16, 8, 16], 4, [16, 8, 12]),
    ],
)
def test_equal_shares(total, sizes, step, expected):
    assert budget.equal_shares(total, sizes, step) == expected


@pytest.mark.parametrize(
    ("total", "sizes", "expected"),
    [
        (100, [576, 1728], [25, 75]),
        (64, [576, 2304], [13, 51]),  # 12.8 and 51.2
        (10, [576, 576], [5, 5]),
        (1, [576, 576], [1, 0]),  # a tie goes to the base crop
        (1, [576, 1728], [0, 1]),
        (5, [16, 0], [5, 0]),
        (2304, [576, 1728], [576, 1728]),
        (7, [1, 1, 1], [3, 2, 2]),
    ],
)
def test_proportional_shares(total, sizes, expected):
    assert budget.proportional_shares(total, sizes) == expected


def test_shares_add_up_and_fit():
    """All sets of up to four sizes, and all totals that they can hold."""
    for sizes in (sizes for n in range(1, 5) for sizes in itertools.product(range(5), repeat=n)):
        for total in range(sum(sizes) + 1):
            shares = budget.equal_shares(total, sizes)
            assert sum(shares) == total and all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))
            unfilled = [share for share, size in zip(shares, sizes, strict=True) if share < size]
            assert unfilled == sorted(unfilled, reverse=True)
            assert not unfilled or max(shares) <= min(unfilled) + 1  # equal, but for sets that are full
            assert budget.equal_shares(3 * total, [3 * size + 2 for size in sizes], 3) == [3 * share for share in shares]
            if any(sizes):
                shares = budget.proportional_shares(total, sizes)
                assert sum(shares) == total
                for share, size in zip(shares, sizes, strict=True):
                    assert 0 <= share <= size and abs(share - total * size / sum(sizes)) < 1


@pytest.mark.parametrize(("keep", "expected"), [(1, 1), (16, 16), (0.5, 8), (0.09, 1), (0.1, 2), (0.001, 1), (1.0, 16)])
def test_tokens_to_keep(keep, expected):
    assert budget.tokens_to_keep(Uniform(), keep, 16, (4, 4)) == expected


@pytest.mark.parametrize(
    ("keep", "error"), [(0, ValueError), (17, ValueError), (1.5, ValueError), ("4", TypeError), (True, TypeError)]
)
def test_tokens_that_cannot_be_kept(keep, error):
    with pytest.raises(error, match="keep"):
        budget.tokens_to_keep(Uniform(), keep, 16, None)


# -------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (Scope(), ("per_crop", "contiguous", "drop", "include")),
        (FoPru(), ("per_crop", "contiguous", "drop", "include")),
        (GPrune(), ("per_branch", "original", "keep", "exclude")),
        (HoloV(), ("joint", "contiguous", "drop", "exclude")),
        (PAR(), ("joint", "contiguous", "keep", "exclude")),
        (TopAttention(), ("per_crop", "contiguous", "keep", "exclude")),
        (Random(), ("per_crop", "contiguous", "keep", "exclude")),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, tuple) else "",
)
def test_defaults_are_what_the_source_of_the_method_does(method, expected):
    found = options(method)
    assert (found.budget, found.positions, found.newlines, found.padding) == expected and found.given == frozenset()


def test_a_method_without_a_policy_has_that_of_the_class():
    class Mine:
        needs = frozenset()

    found = options(Mine())
    assert (found.budget, found.positions, found.newlines, found.padding) == ("per_crop", "contiguous", "keep", "exclude")


def test_what_is_given_goes_before_the_method():
    found = options(Scope(), budget="joint", padding="exclude")
    assert (found.budget, found.newlines, found.padding, found.given) == ("joint", "drop", "exclude", {"budget", "padding"})
    assert found.with_budget("per_crop").budget == "per_crop"


# -------------------------------------------------------------------------------------------------- where tokens lie

SIZES = [
    (100, 80), (80, 100), (60, 200), (200, 60), (56, 56), (50, 56), (57, 56), (112, 112), (111, 112), (112, 56), (168, 168),
    (1000, 3), (3, 1000), (1, 1), (1, 5000), (5000, 1), (333, 332), (56, 113), (75, 41), (41, 75), (20, 160), (160, 20),
]  # fmt: skip


@pytest.mark.parametrize("side", [4, 5])
def test_the_canvas_of_tiles_is_learned_from_the_model(side):
    model = models.llava_next(side=side)
    for size, layout in zip(SIZES, layouts(model, SIZES, Uniform(), 3), strict=True):
        geometry, packed = layout.geometry, models.packed(model, Image(*size))
        assert geometry.order[geometry.inside].tolist() == packed.tokens, size
        assert geometry.order[geometry.inside | (geometry.order >= 0)].tolist() == packed.canvas, size
        assert (geometry.crops, geometry.patches, geometry.calls) == (packed.crops, packed.patches, packed.calls)
        assert (geometry.grid, geometry.base, geometry.before) == ((side, side), side * side, len(packed.tokens))
        newlines = geometry.order == NEWLINE
        assert int(newlines.sum()) == side * packing.tiles_of(size, model.config.image_grid_pinpoints, 14 * side)[0]
        if not (newlines & geometry.inside).any():  # as wide as it can be: nothing is left of the grid
            assert packed.tokens == list(range(side * side))


@pytest.fixture(scope="module")
def small():
    return models.llava_next()


def test_the_canvas_of_any_size(small):
    draw = random.Random(0)
    sizes = [(draw.randint(1, 700), draw.randint(1, 700)) for _ in range(100)]
    for size, layout in zip(sizes, layouts(small, sizes, Scope(), 5), strict=True):
        packed = models.packed(small, Image(*size))
        assert layout.geometry.order[layout.geometry.inside].tolist() == packed.tokens
        assert [t for t in layout.geometry.order.tolist() if t >= 0] == packed.candidates("include")


@pytest.mark.parametrize("limit", [1, 2, 4, 9])
def test_pooled_tiles_count_through_the_prompt(limit):
    model = models.llava_onevision(limit=limit)
    for size, layout in zip(SIZES, layouts(model, SIZES, Uniform(), 3), strict=True):
        geometry, packed = layout.geometry, models.packed(model, Image(*size))
        assert geometry.order.tolist() == packed.tokens and geometry.inside.all()
        assert (geometry.crops, geometry.patches, geometry.calls, geometry.base) == (1, packed.patches, packed.calls, 16)
        assert geometry.pooled and not geometry.newline_is_end


def test_a_model_that_packs_in_another_way_is_an_error(monkeypatch):
    """Tokens are never put anywhere by guess."""
    model = models.llava_next()
    pack = type(model.model).pack_image_features

    def other(self, *args, **kwargs):
        features, lengths = pack(self, *args, **kwargs)
        return [x[1:] for x in features], lengths

    monkeypatch.setattr(type(model.model), "pack_image_features", other)
    with pytest.raises(RuntimeError, match=r"LlavaNextModel\.pack_image_features does not order tokens as vt\.prune expects"):
        layouts(model, [(100, 80)], Uniform(), 3)


@pytest.mark.parametrize(
    ("method", "keep", "wanted", "shares"),
    [
        (Scope(), 160, {}, [32] * 5),
        (Scope(), 162, {}, [33, 33, 32, 32, 32]),
        (Scope(), 3, {}, [1, 1, 1]),
        (Scope(), 160, {"budget": "joint"}, [160]),
        (Scope(), 0.1, {}, [58, 58, 58, 57, 57]),  # 288 of 2880
        (FoPru(), 0.1001, {}, [58, 58, 58, 57, 57]),  # rounded down
        (FoPru("row"), 240, {}, [48] * 5),
        (FoPru("row"), 264, {}, [72, 48, 48, 48, 48]),
        (FoPru("row"), 0.1, {}, [72, 72, 48, 48, 48]),  # 12 of 120 rows
        (GPrune(), 100, {}, [25, 75]),  # 576 and 48 x 36
        (GPrune(), 0.1, {}, [57, 172]),  # of each, rounded down
        (HoloV(), 320, {}, [320]),
        (PAR(), 0.5, {}, [1152]),
    ],
)
def test_budgets_of_five_crops(real, method, keep, wanted, shares):
    (layout,) = layouts(real, [(672, 504)], method, keep, **wanted)  # 2 x 2 tiles, 36 of 48 columns
    assert [part.k for part in layout.parts] == shares
    newlines = {"Scope": 0, "FoPru": 0, "HoloV": 0}.get(type(method).__name__, 48)
    assert (layout.newlines, layout.before, layout.after) == (newlines, 576 + 48 * 37, sum(shares) + newlines)


def test_parts_and_grids_of_five_crops(real):
    (layout,) = layouts(real, [(672, 504)], Scope(), 160)
    assert [part.crop for part in layout.parts] == [0, 1, 2, 3, 4] and {part.grid for part in layout.parts} == {(24, 24)}
    (layout,) = layouts(real, [(672, 504)], Scope(), 160, padding="exclude")
    assert [part.crop for part in layout.parts] == [0, None, None, None, None]
    assert [part.grid for part in layout.parts] == [(24, 24)] + [(24, 18)] * 4  # 6 columns less, left and right
    assert [int(part.candidates[0]) for part in layout.parts] == [0, 576 + 6, 2 * 576, 3 * 576 + 6, 4 * 576]
    (layout,) = layouts(real, [(672, 504)], GPrune(), 160)
    assert [(part.crop, part.grid) for part in layout.parts] == [(0, (24, 24)), (None, (48, 36))]
    (layout,) = layouts(real, [(672, 504)], Scope(), 160, budget="joint")
    assert [(part.crop, part.grid, len(part.candidates)) for part in layout.parts] == [(None, None, 2880)]


def test_other_shapes(real):
    shares = [[part.k for part in x.parts] for x in layouts(real, [(300, 900), (900, 300), (330, 330)], Scope(), 160)]
    assert shares == [[40] * 4, [40] * 4, [80] * 2]
    shares = [[part.k for part in x.parts] for x in layouts(real, [(336, 600), (600, 336)], Scope(), 160)]
    assert shares == [[54, 53, 53]] * 2
    one, thin, wide = layouts(real, [(336, 336), (9000, 3), (3, 9000)], GPrune(), 100)
    assert [part.k for part in one.parts] == [50, 50] and one.newlines == 24
    assert [part.k for part in thin.parts] == [100] and (thin.newlines, thin.before) == (24, 576 + 24)
    assert [part.k for part in wide.parts] == [100] and (wide.newlines, wide.before) == (0, 576)


@pytest.mark.parametrize("padding", ["include", "exclude"])
@pytest.mark.parametrize("newlines", ["keep", "drop"])
def test_ranks_follow_the_order_of_the_prompt(small, padding, newlines):
    for size in SIZES:
        (layout,) = layouts(small, [size], Uniform(), 5, padding=padding, newlines=newlines)
        packed = models.packed(small, Image(*size))
        order = packed.candidates(padding)
        assert layout.rank[order].diff().gt(0).all()
        assert int((layout.rank >= 0).sum()) == len(order)
        if padding == "exclude":  # the rank is the place in the prompt
            assert layout.rank[order].tolist() == [i for i, t in enumerate(packed.tokens) if t >= 0]
        expected = len(packed.tokens) - len(packed.candidates()) if newlines == "keep" else 0
        assert layout.newlines == len(layout.extras) == expected
        assert not set(layout.extras.tolist()) & set(layout.rank[order].tolist())


def test_the_most_that_can_be_kept(real):
    """Padding may displace patches of the image, but the prompt never gets longer than without pruning."""
    size = [(672, 504)]  # 2880 candidates with the padding, 2304 without, 48 newlines
    for wanted, most in [
        ({"padding": "include", "newlines": "drop"}, 2352),
        ({"padding": "include", "newlines": "keep"}, 2304),
        ({"padding": "exclude", "newlines": "drop"}, 2304),
    ]:
        for keep in (1.0, 9999):
            if keep == 1.0:
                (layout,) = layouts(real, size, Uniform(), keep, **wanted)
            else:
                with pytest.warns(
                    UserWarning, match=f"keep = 9999 is more than the {most} patch tokens .* that one keeps {most}"
                ):
                    (layout,) = layouts(real, size, Uniform(), keep, **wanted)
            assert layout.most == sum(part.k for part in layout.parts) == most and layout.after <= layout.before


# -------------------------------------------------------------------------------------------------- the choice


class Counts:
    """Keeps the last k, and counts its calls."""

    needs = frozenset()

    def __init__(self, **policy):
        self.policy, self.calls = Policy(**policy), []

    def select(self, context, k):
        self.calls.append((context.batch, context.tokens, k, context.grid))
        return Selection(
            torch.arange(context.tokens - k, context.tokens).expand(context.batch, k), torch.rand(context.batch, context.tokens)
        )


def captures(**given):
    fields = dict.fromkeys(("features", "projected", "query", "queries", "key")) | {"prefix": 1, "flatten": None, "prompt": {}}
    return selection.Captures(**fields | given)


def test_sets_of_equal_shape_go_together(small):
    """One call for all crops of all images with the same budget, whatever images they are of."""
    method = Counts(padding="include", newlines="drop")
    found = layouts(small, [(112, 112), (56, 50), (60, 200)], method, 10)  # 5, 2 and 4 crops
    plan = selection.plan(tuple(found), CPU)
    tokens = torch.arange(11 * 16.0).view(11, 16, 1)
    kept = selection.choose(method, plan, tokens, captures())
    # 2 each of five; 5 each of two; 3, 3, 2, 2 of four
    assert sorted(method.calls) == [(2, 16, 3, (4, 4)), (2, 16, 5, (4, 4)), (7, 16, 2, (4, 4))]
    first = 0
    for image, layout in zip(kept, found, strict=True):
        shares = [part.k for part in layout.parts]
        expected = [16 * crop + p for crop, k in enumerate(shares) for p in range(16 - k, 16)]
        assert image.candidates.tolist() == expected
        assert image.tokens[:, 0].tolist() == [first + e for e in expected]
        assert image.scores.shape == (16 * len(shares),) and image.scores.isfinite().all()
        first += 16 * len(shares)


def test_a_plan_is_made_once(small):
    found = tuple(layouts(small, [(112, 112), (56, 50)], Uniform(), 10))
    assert selection.plan(found, CPU) is selection.plan(found, CPU)
    assert selection.plan(found[:1], CPU) is not selection.plan(found, CPU)


def test_images_of_one_size_share_a_layout(small):
    one, two, three = layouts(small, [(112, 112), (56, 50), (112, 112)], Uniform(), 10)
    assert one is three and one is not two


def test_crops_without_a_share_have_no_scores(small):
    method = Counts(padding="include")
    (layout,) = layouts(small, [(112, 112)], method, 2)
    (kept,) = selection.choose(method, selection.plan((layout,), CPU), torch.zeros(5, 16, 1), captures())
    assert kept.scores[:32].isfinite().all() and kept.scores[32:].isnan().all() and len(kept.scores) == 80


@pytest.mark.parametrize("newlines", ["keep", "drop"])
def test_kept_tokens_are_arranged_row_by_row_across_the_tiles(small, newlines):
    """Published SCOPE: base crop, then row-major over the whole canvas, so that tiles interleave."""
    (layout,) = layouts(small, [(112, 112)], Uniform(), 1.0, newlines=newlines)
    plan = selection.plan((layout,), CPU)
    tokens = torch.arange(80.0).view(5, 16, 1)
    (kept,) = selection.choose(Uniform(), plan, tokens, captures())
    extras = torch.full((layout.newlines, 1), -1.0) if layout.newlines else None
    arranged, ranks = selection.arrange(plan, 0, kept, kept.tokens, extras)
    packed = models.packed(small, Image(112, 112))
    assert arranged[:, 0].tolist() == [t for t in packed.tokens if newlines == "keep" or t >= 0]
    assert ranks.tolist() == [i for i, t in enumerate(packed.tokens) if newlines == "keep" or t >= 0]


def test_class_tokens_stand_before_their_frame():
    order = torch.tensor([CLASS_TOKEN, 0, 1, 2, 3, CLASS_TOKEN, 4, 5, 6, 7])
    geometry = Geometry(2, 4, (2, 2), order, torch.ones(10, dtype=torch.bool), calls=2)
    layout = lay_out(geometry, Uniform(), 3, options(Uniform()), clip=True)
    assert [part.k for part in layout.parts] == [2, 1] and (layout.newlines, layout.before, layout.after) == (0, 10, 5)
    assert layout.extras.tolist() == [0, 5] and layout.rank.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    plan = selection.plan((layout,), CPU)
    (kept,) = selection.choose(Uniform(), plan, torch.arange(8.0).view(2, 4, 1), captures())
    arranged, _ = selection.arrange(plan, 0, kept, kept.tokens, torch.tensor([[-10.0], [-20.0]]))
    assert kept.candidates.tolist() == [1, 3, 6] and arranged[:, 0].tolist() == [-10, 1, 3, -20, 6]


@pytest.mark.parametrize("end", [True, False])
def test_zero_vectors_go_last_but_before_a_newline_at_the_end(end):
    order = torch.tensor([0, 1, 2, 3, NEWLINE][: 4 + end])
    geometry = Geometry(1, 4, (2, 2), order, torch.ones(len(order), dtype=torch.bool), newline_is_end=end)
    layout = lay_out(geometry, Uniform(), 3, options(Uniform(), newlines="drop"), clip=True)
    plan = selection.plan((layout,), CPU)
    kept = selection.Kept(torch.tensor([[2.0], [3.0], [0.0]]), torch.tensor([2, 3, -1]), None)
    arranged, _ = selection.arrange(plan, 0, kept, kept.tokens, torch.tensor([[-1.0]]) if end else None)
    assert arranged[:, 0].tolist() == ([2, 3, 0, -1] if end else [2, 3, 0])


# -------------------------------------------------------------------------------------------------- published whole sequences

GAP = 3e-5  # closer to each other than this (relative), rounding decides which token is kept
GRIDS = {"r24x24": (336, 336), "r36x48": (504, 672)}  # rows and columns of the unpadded grid -> an image that has it
SEQUENCES = [name for name in GPRUNE_CASES if name.split("_")[1] in GRIDS]


def test_sequences_are_there():
    assert len(SEQUENCES) == 8


@pytest.mark.parametrize("name", SEQUENCES)
def test_published_gprune_sequences_come_out_of_the_layout(real, name):
    """From the projected tokens of crops to the kept positions of the packed sequence, newlines among them."""
    case, size = gprune_case(name), GRIDS[name.split("_")[1]]
    base, grid = case.branches
    method = GPrune(**case.options)
    (layout,) = layouts(real, [size], method, base.k + grid.k)
    if [part.k for part in layout.parts] != [base.k, grid.k]:  # a published fraction, rounded in each branch
        (layout,) = layouts(
            real, [size], method, min((k + 0.5) / len(b.positions) for b, k in ((base, base.k), (grid, grid.k)))
        )
    assert [part.k for part in layout.parts] == [base.k, grid.k]
    packed = models.packed(real, Image(*size))
    projected = torch.randn(packed.crops * 576, base.features.shape[-1]).to(base.features.dtype)  # the padding is noise
    projected[packed.candidates()] = torch.cat([base.features[0], grid.features[0]])
    projected = projected.view(packed.crops, 576, -1)
    plan = selection.plan((layout,), CPU)
    (kept,) = selection.choose(method, plan, projected, captures(projected=projected))
    newline = projected.new_full((layout.newlines, projected.shape[-1]), math.pi)
    tokens, ranks = selection.arrange(plan, 0, kept, kept.tokens, newline)
    assert len(ranks) == len(case.kept) == layout.after
    assert set(case.newlines.tolist()) <= set(ranks.tolist())
    if all(branch.gap > GAP for branch in case.branches):
        assert ranks.equal(case.kept)
    place = {position: i for i, position in enumerate(ranks.tolist())}
    for branch in case.branches:
        for i, position in enumerate(branch.positions.tolist()):
            if position in place:
                assert tokens[place[position]].equal(branch.features[0, i])
