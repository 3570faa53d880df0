"""A pruned prompt built by hand: the unpruned model's features, the reported indices, and packing.py for where each stands.

Nothing here uses the package but to run what is to be checked.
"""

from __future__ import annotations

import functools

import models
import torch
from models import Image
from packing import CLASS, NEWLINE

from vtkernels.integrations import prune

BUILD = {
    "llava": models.llava,
    "next": models.llava_next,
    "next-siglip": lambda: models.llava_next(tower="siglip", strategy="full"),
    "next-layers": lambda: models.llava_next(feature_layer=[-3, -2]),
    "next-video": models.llava_next_video,
    "onevision": models.llava_onevision,
    "onevision-unpooled": lambda: models.llava_onevision(limit=9),
    "video-llava": models.video_llava,
    "video-llava-full": lambda: models.video_llava(strategy="full"),
    "vipllava": models.vipllava,
}
CLASSES = ("llava", "next", "next-video", "onevision", "video-llava", "vipllava")
TEXT = [10, 11, 12]
LONG = list(range(13, 50))
# wide, tall, square, one tile, and so thin that the grid is nothing but newlines, or nothing at all
SHAPES = (Image(60, 200), Image(150, 70), Image(112, 112), Image(56, 50), Image(1000, 3), Image(3, 1000))


@functools.cache
def build(name):
    """A model by name. Tests share it, so they leave it as it was."""
    return BUILD[name]()


def mixed(model):
    """Images of different shapes, several in a prompt, videos and images in a prompt, rows of text alone."""
    video = "video" if models.takes_videos(model) else Image(150, 70)
    return [[3, Image(100, 80), 4, Image(60, 200), 5], TEXT, [6, video, 7, "image", 8, video, 9], LONG]


class Visual:
    """An image or video of a batch: where its tokens stand, the unpruned model's features of them, its pixels."""

    def __init__(self, packed, features, pixels):
        self.packed, self.features, self.pixels = packed, features, pixels


def visuals_of(model, prompts, x, *, frames=3, one_by_one=False):
    """A list for every prompt, and all of them with the images before the videos, as the record has them."""
    features = models.visual_features(model, x)
    counts = (len(models.images_of(prompts)), len(models.videos_of(prompts)))
    pixels = [*x.get("pixel_values", x.get("pixel_values_images", ())), *x.get("pixel_values_videos", ())]
    images, videos = 0, counts[0]
    rows = []
    for prompt in prompts:
        tiled, row = not one_by_one or len(models.images_of([prompt])) == 1, []
        for word in filter(models.is_visual, prompt):
            packed = models.packed(model, word, frames=frames, tiled=tiled)
            if word == "video":
                number, videos = videos, videos + 1
            else:
                number, images = images, images + 1
            row.append((number, Visual(packed, features[number], pixels[number])))
        rows.append(row)
    ordered = dict(pair for row in rows for pair in row)
    return rows, [ordered[i] for i in range(sum(counts))]


def of_crops(model, visual):
    """[crops * patches, D]: every patch of every tile through tower and projector, padding included."""
    core, config = model.model, model.config
    states = core.vision_tower(visual.pixels[: visual.packed.calls], output_hidden_states=True).hidden_states
    layer = config.vision_feature_layer
    states = states[layer] if isinstance(layer, int) else torch.cat([states[i] for i in layer], dim=-1)
    if config.vision_feature_select_strategy == "default":
        states = states[:, 1:]
    return core.multi_modal_projector(states).flatten(0, 1)


def kept_sequence(model, visual, record, number, options):
    """Tokens [k, D] of a pruned image, and the places [k] that they have among its tokens."""
    packed, indices = visual.packed, record.indices[number].tolist()
    real = [i for i in indices if i >= 0]
    assert len(set(real)) == len(real) and real == sorted(real) and indices[: len(real)] == real
    sequence = packed.canvas if options.padding == "include" else packed.tokens
    cropped = of_crops(model, visual) if packed.canvas != packed.tokens and options.padding == "include" else None
    place = {t: i for i, t in enumerate(packed.tokens) if t >= 0}
    newline_places = iter([i for i, t in enumerate(packed.tokens) if t == NEWLINE])
    tokens, places, newlines, class_places = [], [], 0, iter([i for i, t in enumerate(packed.tokens) if t == CLASS])
    for entry in sequence:
        if entry == NEWLINE:
            where = next(newline_places)
            if options.newlines == "keep" or packed.base is None:
                tokens.append(visual.features[where])
                places.append(where)
                newlines += 1
        elif entry == CLASS:
            where = next(class_places)
            tokens.append(visual.features[where])
            places.append(where)
        elif entry in real:
            tokens.append(visual.features[place[entry]] if entry in place else cropped[entry])
            places.append(place.get(entry, -1))
    assert sum(entry in real for entry in sequence) == len(real)  # nothing was kept that cannot be
    # zero vectors of HoloV go last, but before the newline of an image without tiles or a video
    end = len(tokens) - (sequence[-1] == NEWLINE and packed.base is None)
    empty = len(indices) - len(real)
    tokens[end:end] = [torch.zeros_like(visual.features[0])] * empty
    places[end:end] = [len(packed.tokens) - 1] * empty
    assert record.newlines[number] == newlines
    assert record.tokens_before[number] == len(packed.tokens) and record.tokens_after[number] == len(tokens)
    return torch.stack(tokens), torch.tensor(places)


def sequences(model, prompts, x, pruning, *, frames=3, one_by_one=False, change=None):
    """Embeddings [1, L, D] and positions [1, L] (or None) of every prompt.

    Args:
        pruning: whose ``last`` says what was kept.
        change: a function of number, :class:`Visual` and kept tokens [k, D] that gives other tokens.
    """
    rows, everything = visuals_of(model, prompts, x, frames=frames, one_by_one=one_by_one)
    record, options = pruning.last, pruning.options
    assert len(record.indices) == len(everything)
    result = []
    for prompt, row in zip(prompts, rows, strict=True):
        kept, places, sizes = [], [], []
        for number, visual in row:
            tokens, where = kept_sequence(model, visual, record, number, options)
            kept.append(tokens if change is None else change(number, visual, tokens))
            places.append(where)
            sizes.append(len(visual.packed.tokens))
        positions = models.places(prompt, places, sizes) if options.positions == "original" else None
        result.append((models.embedded(model, prompt, kept), positions))
    return result


def logits_of(model, sequences):
    logits = []
    for embeds, positions in sequences:
        more = {} if positions is None else {"position_ids": positions}
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        logits.append(model(inputs_embeds=embeds, attention_mask=mask, **more).logits[0])
    return logits


def same(logits, expected, side):
    assert logits.shape[:2] == (len(expected), max(map(len, expected)))
    for row, alone in zip(logits, expected, strict=True):
        torch.testing.assert_close(row[-len(alone) :] if side == "left" else row[: len(alone)], alone, atol=5e-5, rtol=2e-4)


def check(model, prompts, method, keep, *, side="left", frames=3, one_by_one=False, **options):
    """Prune, compare with the sequence by hand, and return the record."""
    x = models.inputs(model, prompts, side=side, frames=frames, one_by_one=one_by_one)
    with prune(model, method, keep, **options) as pruning:
        logits = model(**x).logits
    same(logits, logits_of(model, sequences(model, prompts, x, pruning, frames=frames, one_by_one=one_by_one)), side)
    return pruning.last
