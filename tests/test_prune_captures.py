"""What a method is given on every class of the LLaVA family, against the unpruned model's own features and attention maps."""

import pytest
import torch

pytest.importorskip("transformers")

import models
import packing
from by_hand import build, of_crops, visuals_of
from models import Image
from packing import NEWLINE
from torch.nn import functional

from vtkernels.integrations import prune
from vtkernels.methods import Policy, Selection, TopAttention


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class Spy:
    """Asks for everything and keeps the first k."""

    needs = frozenset({"features", "projected", "saliency", "attention_profile"})

    def __init__(self, **policy):
        self.policy, self.contexts = Policy(**policy), []

    def select(self, context, k):
        self.contexts.append(context)
        return Selection(torch.arange(k).expand(context.batch, k), context.saliency())

    def sets(self):
        """What each set was given, one after the other."""
        for c in self.contexts:
            parts = (
                c.features,
                c.projected,
                c.saliency(),
                c.saliency("sum"),
                *c.attention_profile(),
                *c.attention_profile(softmax=False),
            )
            for i in range(c.batch):
                yield c.grid, [part[i] for part in parts]


def captures(model, pixels, tower=None):
    """Of the patches of each call: features, nothing, saliency, its sum, received and given by softmax and by logits.

    Recomputed from the input of the layer.
    """
    core, config = model.model, model.config
    tower = tower or (core.video_tower if hasattr(core, "video_tower") else core.vision_tower)
    first = 1 if config.vision_config.model_type == "clip_vision_model" else 0
    layer = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", None))
    last = layer if isinstance(layer, int) else layer[-1]
    layers = [layer] if isinstance(layer, int) else layer
    body = getattr(tower, "vision_model", tower)
    attention = body.encoder.layers[last - 1 if last > 0 else last].self_attn
    seen = []
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get("hidden_states", *args)), with_kwargs=True
    )
    states = tower(pixels, output_hidden_states=True).hidden_states
    handle.remove()
    q, k = (p(seen[0]).unflatten(-1, (4, 8)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    scaled = q @ k.transpose(2, 3) * 8**-0.5
    maps, inner = scaled.softmax(-1), (slice(None), slice(None), slice(first, None), slice(first, None))
    saliency = maps[:, :, 0, 1:] if first else maps.mean(2)
    features = torch.cat([states[i][:, first:] for i in layers], dim=-1)
    profile = [f for m in (maps, scaled) for f in (m[inner].mean((1, 2)), m[inner].mean((1, 3)))]
    return [features, None, saliency.mean(1), saliency.sum(1), *profile]


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "default"), ("siglip", "full")])
def test_saliency_is_what_eager_attention_maps_say(tower, strategy):
    """The class token's attention, or where there is none the attention received; and so is what is kept by it."""
    model = models.llava_next(tower=tower, strategy=strategy, attention="eager")
    prompts = [[3, Image(60, 200), 4]]
    x = models.inputs(model, prompts)
    visual = visuals_of(model, prompts, x)[1][0]
    pixels = visual.pixels[: visual.packed.calls]
    maps = model.model.vision_tower(pixels, output_attentions=True).attentions[-2]
    expected = (maps.mean(1)[:, 0, 1:] if tower == "clip" else maps.mean((1, 2))).flatten()
    torch.testing.assert_close(captures(model, pixels)[2].flatten(), expected)  # what the tests below compare with
    with prune(model, TopAttention(), 9, budget="joint", padding="exclude") as pruning:
        model(**x)
    order, scores = visual.packed.candidates(), pruning.last.scores[0]
    torch.testing.assert_close(scores[order], expected[order])
    assert scores.isnan().sum() == len(expected) - len(order)  # the padding
    assert pruning.last.indices[0].equal(torch.tensor(order)[expected[order].topk(9).indices].sort().values)


def test_class_attention_comes_as_saliency_does():
    class Attentive(Spy):
        needs = frozenset({"class_attention"})

    model = build("next")
    prompts = [[3, Image(60, 200), 4]]
    x = models.inputs(model, prompts)
    with prune(model, Attentive(), 9) as pruning:
        model(**x)
    visual = visuals_of(model, prompts, x)[1][0]
    order = visual.packed.candidates()
    expected = captures(model, visual.pixels[: visual.packed.calls])[2].flatten()
    torch.testing.assert_close(pruning.last.scores[0][order], expected[order])


def grid_of(model, size):
    """Tiles, and the rows and columns of the canvas that are no padding."""
    return packing.grid_of(size, model.config.image_grid_pinpoints, 56, 4)


def pooled_by_hand(model, size, x):
    """[calls, P, D] of an image's crops as [M, D] of OneVision's candidates."""
    tiles, rows, columns = grid_of(model, size)
    canvas = x[1:].view(*tiles, 4, 4, -1).transpose(1, 2).reshape(4 * tiles[0], 4 * tiles[1], -1)
    grid = canvas[rows.start : rows.stop, columns.start : columns.stop]
    limit = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = (len(rows) * len(columns) / (limit * 16)) ** 0.5
    if ratio > 1.1:
        target = [int(len(rows) // ratio), int(len(columns) // ratio)]
        grid = functional.interpolate(grid.permute(2, 0, 1)[None], target, mode="bilinear")[0].permute(1, 2, 0)
    return torch.cat([x[0], grid.flatten(0, 1)])


def compare(spy, expected):
    """Every set that was expected was given, and nothing else; ``expected`` holds (grid, captures)."""
    given = list(spy.sets())
    assert len(given) == len(expected)
    for grid, parts in expected:
        found = [
            g for g in given if g[1][1].shape == parts[1].shape and torch.allclose(g[1][1], parts[1], atol=1e-5, rtol=1e-4)
        ]
        assert len(found) == 1, "no set, or several, with these projected tokens"
        assert found[0][0] == grid
        for a, e in zip(found[0][1], parts, strict=True):
            torch.testing.assert_close(a, e, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("budget", ["per_crop", "per_branch", "joint"])
@pytest.mark.parametrize("padding", ["include", "exclude"])
@pytest.mark.parametrize("name", ["next", "next-siglip", "next-layers", "next-video"])
@pytest.mark.parametrize("size", [Image(60, 200), Image(80, 112)], ids=str)
def test_captures_of_tiles(name, budget, padding, size):
    model = build(name)
    prompts = [[3, size, 4]]
    x = models.inputs(model, prompts)
    spy = Spy(budgets=(budget,), padding=padding)
    with prune(model, spy, 9):
        model(**x)
    visual = visuals_of(model, prompts, x)[1][0]
    parts = captures(model, visual.pixels[: visual.packed.calls])
    parts = [None if p is None else p.flatten(0, 1) for p in parts]
    parts[1] = of_crops(model, visual)
    order = visual.packed.candidates(padding)
    tiles, rows, _ = grid_of(model, size)
    rows = len(rows) if padding == "exclude" else 4 * tiles[0]
    grid = (rows, (len(order) - 16) // rows)
    if budget == "joint":
        sets = [(None, order)]
    elif budget == "per_branch":
        sets = [((4, 4), order[:16]), (grid, order[16:])]
    else:
        sets = []
        for crop in range(visual.packed.crops):
            own = sorted(t for t in order if t // 16 == crop)
            if own:
                sets.append(((len({t % 16 // 4 for t in own}), len({t % 4 for t in own})), own))
    compare(spy, [(g, [p[own] for p in parts]) for g, own in sets])


@pytest.mark.parametrize("budget", ["per_branch", "joint"])
@pytest.mark.parametrize("name", ["onevision", "onevision-unpooled"])
@pytest.mark.parametrize("size", [Image(60, 200), Image(168, 120)], ids=str)
def test_captures_of_pooled_tiles(name, budget, size):
    model = build(name)
    prompts = [[3, size, 4]]
    x = models.inputs(model, prompts)
    spy = Spy(budgets=(budget,))
    with prune(model, spy, 9):
        model(**x)
    visual = visuals_of(model, prompts, x)[1][0]
    parts = captures(model, visual.pixels[: visual.packed.calls])
    parts = [None if p is None else pooled_by_hand(model, size, p if p.dim() == 3 else p[..., None]) for p in parts]
    parts = [p if p is None or i < 2 else p[:, 0] for i, p in enumerate(parts)]
    tokens = visual.packed.tokens
    parts[1] = visual.features[[i for i, t in enumerate(tokens) if t >= 0]]
    rows = sum(t == NEWLINE for t in tokens)
    branches = [((4, 4), slice(16)), ((rows, (len(parts[1]) - 16) // rows), slice(16, None))]
    sets = branches if budget == "per_branch" else [(None, slice(None))]
    compare(spy, [(g, [p[own] for p in parts]) for g, own in sets])


@pytest.mark.parametrize("budget", ["per_crop", "joint"])
@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("name", ["next-video", "next-video-max", "onevision", "video-llava"])
def test_captures_of_frames(name, side, budget):
    """Where frames are pooled, a score is the mean (or interpolation) over what its token is made of."""
    if name == "next-video":
        model = models.llava_next_video(side=side)
    elif name == "next-video-max":
        model = models.llava_next_video(side=side, mode="max")
    else:
        model = (models.llava_onevision if name == "onevision" else models.video_llava)(side=side)
    prompts = [[3, "video", 4]]
    x = models.inputs(model, prompts)
    spy = Spy(budgets=(budget,))
    with prune(model, spy, 6):
        model(**x)
    visual = visuals_of(model, prompts, x)[1][0]

    def pool(i, p):
        if name == "video-llava":
            return p
        grid = (p if p.dim() == 3 else p[..., None]).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        if name == "onevision":
            grid = functional.interpolate(grid, ((side + 1) // 2, (side + 1) // 2), mode="bilinear")
        else:
            grid = (functional.max_pool2d if name.endswith("max") and i == 0 else functional.avg_pool2d)(grid, 2)
        grid = grid.flatten(2).transpose(1, 2)
        return grid if p.dim() == 3 else grid[..., 0]

    parts = [None if p is None else pool(i, p) for i, p in enumerate(captures(model, visual.pixels))]
    tokens = [i for i, t in enumerate(visual.packed.tokens) if t >= 0]
    parts[1] = visual.features[tokens].unflatten(0, (3, -1))
    across = side if name == "video-llava" else side // 2 if name.startswith("next") else (side + 1) // 2
    if budget == "joint":
        compare(spy, [(None, [p.flatten(0, 1) for p in parts])])
    else:
        compare(spy, [((across, across), [p[f] for p in parts]) for f in range(3)])


@pytest.mark.parametrize("name", ["llava", "vipllava", "video-llava-full"])
def test_captures_of_single_grids(name):
    model = build(name)
    prompts = [[3, "image", 4, "image"]]
    x = models.inputs(model, prompts)
    spy = Spy()
    with prune(model, spy, 6):
        model(**x)
    core, pixels = model.model, x.get("pixel_values", x.get("pixel_values_images"))
    parts = captures(model, pixels, tower=core.image_tower if name.startswith("video-llava") else core.vision_tower)
    visuals = visuals_of(model, prompts, x)[1]
    parts[1] = torch.stack([v.features[[i for i, t in enumerate(v.packed.tokens) if t >= 0]] for v in visuals])
    compare(spy, [((4, 4), [p[i] for p in parts]) for i in range(2)])
