"""Images and features whose structure is known, as the :class:`vtkernels.methods.Context` that a method sees of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import vtkernels as vt
from vtkernels.cli import _model, _picture
from vtkernels.methods import Context, Selection

from .quality_table import SALIENCIES

SIDE, PIXELS = 24, 336  # CLIP-L/14-336: a grid of 24 x 24 patches
TOKENS = SIDE * SIDE
WIDTH = 1024  # of the controlled features
PROMPT = "What is in the picture?"
SHARPER = 5.0  # queries and keys of the random tower; see encode()


@dataclass(frozen=True)
class Input:
    """One set of tokens.

    Attributes:
        name, family: of the input; ``"image"`` or ``"features"``.
        context: B = 1, with everything that a method may ask for.
        labels: int64 [N], the true group of each token; None where there are none.
    """

    name: str
    family: str
    context: Context
    labels: Tensor | None


# ------------------------------------------------------------------------------------------------------------------- images


def _flat(random: np.random.Generator) -> tuple[Image.Image, np.ndarray | None]:
    """One colour everywhere: only the position tells patches apart."""
    return Image.new("RGB", (PIXELS, PIXELS), (96, 128, 160)), None


def _gradient(random: np.random.Generator) -> tuple[Image.Image, np.ndarray | None]:
    """Red grows to the right, green downwards, blue towards the middle."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS] / (PIXELS - 1)
    blue = 1 - np.hypot(x - 0.5, y - 0.5) / math.hypot(0.5, 0.5)
    return _to_image(np.stack([x, y, blue], -1)), None


def _textures(random: np.random.Generator) -> tuple[Image.Image, np.ndarray | None]:
    """A board of 6 x 6 gratings, each of a frequency, an angle and two colours of its own; a group each."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS]
    cell = PIXELS // 6
    labels = y // cell * 6 + x // cell
    angle, period = random.uniform(0, math.pi, 36), random.uniform(4, 20, 36)
    dark, light = random.uniform(0, 1, (2, 36, 3))
    phase = (x * np.cos(angle)[labels] + y * np.sin(angle)[labels]) / period[labels]
    share = 0.5 + 0.5 * np.sin(2 * math.pi * phase)[..., None]
    return _to_image(dark[labels] * share + light[labels] * (1 - share)), labels


def _object(random: np.random.Generator) -> tuple[Image.Image, np.ndarray | None]:
    """A striped disc of about three patches on a plain ground; two groups."""
    y, x = np.mgrid[0:PIXELS, 0:PIXELS]
    cy, cx = random.uniform(0.2 * PIXELS, 0.8 * PIXELS, 2)
    inside = np.hypot(x - cx, y - cy) < 22
    stripes = np.where(((x + y) // 5 % 2)[..., None], (0.95, 0.7, 0.1), (0.5, 0.05, 0.05))
    return _to_image(np.where(inside[..., None], stripes, (0.75, 0.78, 0.8))), inside.astype(int)


def _strokes(random: np.random.Generator) -> tuple[Image.Image, np.ndarray | None]:
    """Lines of dark strokes on white, like writing; every word is a group, and so is the paper."""
    image, labels = Image.new("RGB", (PIXELS, PIXELS), "white"), np.zeros((PIXELS, PIXELS), int)
    draw = ImageDraw.Draw(image)
    word = 0
    for top in range(28, PIXELS - 40, 56):
        left = 24
        while (length := int(random.integers(3, 8))) and left + 9 * length < PIXELS - 20:
            word += 1
            labels[top : top + 18, left : left + 9 * length] = word
            for letter in range(length):
                x = left + 9 * letter
                points = random.integers((x, top), (x + 8, top + 19), (4, 2))
                draw.line([tuple(map(int, point)) for point in points], fill=(20, 20, 40), width=2)
            left += 9 * length + int(random.integers(14, 30))
    return image, labels


def _photograph(random: np.random.Generator) -> tuple[Image.Image, np.ndarray | None]:
    """The photograph that comes with the package."""
    return _picture.read(None), None


IMAGES: dict[str, Callable[[np.random.Generator], tuple[Image.Image, np.ndarray | None]]] = {
    "flat": _flat,
    "gradient": _gradient,
    "textures": _textures,
    "object": _object,
    "strokes": _strokes,
    "photograph": _photograph,
}


def image(name: str, seed: int) -> Input:
    """One of ``IMAGES`` behind a random tower."""
    picture, labels = IMAGES[name](np.random.default_rng(seed))
    return Input(name, "image", encode(picture, seed), None if labels is None else _by_patch(labels))


def encode(picture: Image.Image, seed: int) -> Context:
    """What ``vt.prune`` shows a method of a picture: CLIP-L/14-336 sizes cut to three layers, random weights.

    Random weights keep what depends on the pixels and the architecture: alike patches get alike features. They know no
    meaning: attention does not look for objects, and the projector's output has nothing to do with the prompt's embeddings.
    With the initial weights the class token's attention is flat (575 effective tokens of 576 for the photograph), which no
    trained tower's is; queries and keys are therefore made ``SHARPER`` times as large.
    """
    geometry = _model.Geometry(text_layers=1)
    with _model.quiet():
        subject = _model.random_model(geometry, picture, PROMPT, seed=seed, dtype=torch.float32, device=torch.device("cpu"))
        for name, module in subject.model.model.vision_tower.named_modules():
            if name.endswith(("q_proj", "k_proj")):
                module.weight.data *= SHARPER
        recorder = _Recorder()
        with torch.no_grad(), vt.prune(subject.model, recorder, keep=1):
            subject.model(**subject.inputs)
    return recorder.context


class _Recorder:
    """A method that remembers what it was shown."""

    needs: Set[str] = frozenset({"features", "projected", "class_attention", "attention_profile", "prompt"})
    context: Context

    def select(self, context: Context, k: int) -> Selection:
        self.context = context
        return Selection(torch.arange(k)[None])


def _to_image(values: np.ndarray) -> Image.Image:
    return Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def _by_patch(labels: np.ndarray) -> Tensor:
    """int64 [N] of labels [pixels, pixels]: the most frequent label of a patch, 0 only where it has no other."""
    patches = labels.reshape(SIDE, PIXELS // SIDE, SIDE, PIXELS // SIDE).swapaxes(1, 2).reshape(TOKENS, -1)
    counts = [np.bincount(patch) for patch in patches]
    return torch.tensor([1 + int(count[1:].argmax()) if count[1:].any() else 0 for count in counts])


# ----------------------------------------------------------------------------------------------------------------- features


def _clusters(random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """24 groups in parts of the grid, of unequal size: each has a direction of its own, and noise half as long."""
    labels = _regions(random, 24)
    return _unit(random, 24)[labels] + 0.5 * _unit(random, TOKENS), labels


def _duplicates(random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """48 distinct tokens, each copied exactly over its part of the grid; a group is the copies of one token."""
    labels = _regions(random, 48)
    return _unit(random, 48)[labels], labels


def _outliers(random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """One crowd, and 16 tokens anywhere that are like nothing else; a group each."""
    features, labels = _unit(random, 1) + 0.3 * _unit(random, TOKENS), torch.zeros(TOKENS, dtype=torch.long)
    places = torch.randperm(TOKENS, generator=random)[:16]
    features[places], labels[places] = _unit(random, 16), torch.arange(1, 17)
    return features, labels


def _low_rank(random: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Tokens in a subspace of 96 dimensions, of falling weight, and a little noise; no groups."""
    weights = 0.97 ** torch.arange(96)
    plane = torch.randn(TOKENS, 96, generator=random) * weights @ _unit(random, 96)
    return plane + 0.05 * _unit(random, TOKENS), None


STRUCTURES = {"clusters": _clusters, "duplicates": _duplicates, "outliers": _outliers, "low rank": _low_rank}
FEATURES = (
    *(("clusters", saliency) for saliency in SALIENCIES),
    *((structure, "independent") for structure in STRUCTURES if structure != "clusters"),
)


def features(structure: str, saliency: str, seed: int) -> Input:
    """Tokens of a known structure, the same before and behind the projector, under a saliency.

    Attention is a permutation of the same values in every case, so that masses can be compared: log-normal, sigma 1.5. Rare
    is a token that few others resemble. ``"agrees"``: the class token looks at what is rare, one of its kind;
    ``"contradicts"``: at the crowd, where every token says the same; ``"independent"``: anywhere. Patches attend likewise, and
    to what resembles them. The prompt asks for the group of the token in the middle of the grid.
    """
    random = torch.Generator().manual_seed(seed)
    tokens, labels = STRUCTURES[structure](random)
    unit = torch.nn.functional.normalize(tokens, dim=1)
    noise = torch.randn(TOKENS, generator=random)
    rare = -(unit @ unit.T).clamp_min(0).sum(1)
    rare = (rare - rare.mean()) / rare.std() + 0.3 * noise
    order = {"agrees": rare, "independent": noise, "contradicts": -rare}[saliency]
    logits = 1.5 * _normal_scores(order)

    # Attention that is made to measure: logit of key j, plus four times (about) the cosine of i and j where a patch asks.
    d = 64
    projection = torch.randn(WIDTH, d - 1, generator=random) / math.sqrt(d - 1)
    key = torch.cat([logits[:, None], unit @ projection], 1)
    queries = math.sqrt(d) * torch.cat([torch.ones(TOKENS, 1), 4 * unit @ projection], 1)
    key, queries = (torch.nn.functional.pad(x, (0, 0, 1, 0))[None, None] for x in (key, queries))  # the class token in front
    queries[..., 0, 0] = math.sqrt(d)
    middle = tokens[TOKENS // 2 + SIDE // 2]
    prompt = middle + 0.5 * middle.norm() * _unit(random, 4)
    context = Context(
        batch=1,
        tokens=TOKENS,
        device=torch.device("cpu"),
        grid=(SIDE, SIDE),
        features=tokens[None],
        projected=tokens[None],
        query=queries[:, :, 0],
        queries=queries,
        key=key,
        prefix=1,
        prompt=prompt[None],
        prompt_ids=torch.zeros(1, 4, dtype=torch.long),
        prompt_lengths=torch.tensor([4]),
    )
    return Input(f"{structure}, saliency {saliency}", "features", context, labels)


def _unit(random: torch.Generator, count: int) -> Tensor:
    """[count, WIDTH] random directions of length 1."""
    return torch.nn.functional.normalize(torch.randn(count, WIDTH, generator=random), dim=1)


def _regions(random: torch.Generator, count: int) -> Tensor:
    """int64 [N]: the grid cut into parts of unequal size around random places, none of them empty."""
    sites = torch.randperm(TOKENS, generator=random)[:count]
    place = torch.stack([torch.arange(TOKENS) // SIDE, torch.arange(TOKENS) % SIDE], 1).float()
    reach = torch.rand(count, generator=random) * 3 + 0.5
    distance = torch.cdist(place, place[sites]) / reach
    return distance.argmin(1)


def _normal_scores(values: Tensor) -> Tensor:
    """The quantiles of a normal distribution in the order of the values."""
    rank = values.argsort().argsort().double()
    return (math.sqrt(2) * torch.erfinv(2 * (rank + 0.5) / len(values) - 1)).float()


def inputs(seed: int, *, quick: bool = False) -> Iterator[Callable[[], Input]]:
    """Everything that is measured, to be made when needed; ``quick``: one of each family."""
    chosen = (("textures",), FEATURES[:1]) if quick else (tuple(IMAGES), FEATURES)
    for name in chosen[0]:
        yield partial(image, name, seed)
    for structure, saliency in chosen[1]:
        yield partial(features, structure, saliency, seed)
