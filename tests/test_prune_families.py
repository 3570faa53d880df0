"""Pruning on every class of the LLaVA family: logits and generated tokens are those of the prompt built by hand."""

import pytest
import torch

pytest.importorskip("transformers")

import models
from by_hand import BUILD, CLASSES, LONG, SHAPES, TEXT, build, check, logits_of, mixed, same, sequences, visuals_of
from models import Image

from vtkernels.integrations import prune
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Random, Scope, TopAttention, Uniform

METHODS = {
    "Scope": Scope(),
    "FoPru": FoPru(),
    "GPrune": GPrune(threshold=0.2),
    "HoloV": HoloV(),
    "HoloV-released": HoloV(crops=3, variant="released"),
    "PAR-drop": PAR(route="drop"),
    "TopAttention": TopAttention(),
    "Random": Random(1),
    "Uniform": Uniform(),
}


def by_name(x):
    return x if isinstance(x, str) else type(x).__name__


each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# -------------------------------------------------------------------------------------------------- every class, every method


@each_method
@pytest.mark.parametrize(("name", "side"), [*((name, "left") for name in BUILD), ("next", "right"), ("onevision", "right")])
def test_logits_are_those_of_the_sequence_built_by_hand(name, side, method):
    model = build(name)
    record = check(model, mixed(model), method, 7, side=side)
    assert [len(i) for i in record.indices] == [7] * 5
    words = models.images_of(mixed(model)) + models.videos_of(mixed(model))
    for scores, word in zip(record.scores, words, strict=True):
        packed = models.packed(model, word)
        assert scores is None or (scores.dtype, scores.shape) == (torch.float32, (packed.crops * packed.patches,))


@pytest.mark.parametrize("method", [m for name, m in METHODS.items() if name != "HoloV-released"], ids=by_name)
@pytest.mark.parametrize("name", CLASSES)
def test_all_tokens_kept_is_the_unpruned_model(name, method):
    """Bit for bit where the projector runs as it does without pruning. (HoloV's released variant always loses tokens.)"""
    model = build(name)
    x = models.inputs(model, mixed(model))
    expected = model(**x).logits
    with prune(model, method, 1.0, newlines="keep", padding="exclude") as pruning:
        logits = model(**x).logits
    assert pruning.last.tokens_after == pruning.last.tokens_before
    if "projected" in method.needs or name == "onevision":
        assert logits.equal(expected)
    torch.testing.assert_close(logits, expected, atol=5e-5, rtol=2e-4)


@each_method
@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_of_four_is_four_batches_of_one(name, method):
    model = build(name)
    video = "video" if models.takes_videos(model) else "image"
    prompts = [[3, Image(100, 80), 4, Image(60, 200)], TEXT, [6, video, 7, "image"], [*LONG, Image(150, 70)]]
    x = models.inputs(model, prompts)
    with prune(model, method, 5) as pruning:
        together, last = model(**x).logits, pruning.last
        alone, kept, images, videos = [], {}, 0, len(models.images_of(prompts))
        for prompt in prompts:
            own = models.inputs(model, [prompt])
            n, m = len(models.images_of([prompt])), len(models.videos_of([prompt]))
            for key in own.keys() & {"pixel_values", "pixel_values_images", "image_sizes"}:
                own[key] = x[key][images : images + n]
            if m:
                first = videos - len(models.images_of(prompts))
                own["pixel_values_videos"] = x["pixel_values_videos"][first : first + m]
            alone.append(model(**own).logits[0])
            numbers = [*range(images, images + n), *range(videos, videos + m)]
            kept |= dict(zip(numbers, pruning.last.indices, strict=True))
            images, videos = images + n, videos + m
    assert [i.tolist() for i in last.indices] == [kept[i].tolist() for i in sorted(kept)] and len(kept) == 5
    same(together, alone, "left")


# -------------------------------------------------------------------------------------------------- options

WAYS = [
    dict(newlines=newlines, padding=padding, positions=positions)
    for newlines in ("keep", "drop")
    for padding, positions in (("include", "contiguous"), ("exclude", "contiguous"), ("exclude", "original"))
]
NEXT = [
    (Scope(), "per_crop"),
    (Scope(), "joint"),
    (FoPru(), "per_crop"),
    (FoPru(), "joint"),
    (TopAttention(), "per_crop"),
    (TopAttention(), "joint"),
    (Uniform(), "joint"),
    (GPrune(), "per_branch"),
    (HoloV(), "joint"),
    (PAR(route="drop"), "joint"),
]


@pytest.mark.parametrize(("way", "keep"), [*((way, 11) for way in WAYS), (WAYS[0], 0.3), (WAYS[-1], 0.3)], ids=str)
@pytest.mark.parametrize(("method", "budget"), NEXT, ids=by_name)
def test_options_of_tiled_images(method, budget, way, keep):
    model = build("next")
    prompts = [[3, SHAPES[0], SHAPES[1], 4, SHAPES[2]], TEXT, [5, SHAPES[3], 6, SHAPES[4], SHAPES[5]]]
    record = check(model, prompts, method, keep, budget=budget, **way)
    if keep == 11:
        assert [len(i) for i in record.indices] == [11] * 6
    if budget == "per_crop" and keep == 11 and way["padding"] == "include":
        for word, indices in zip(SHAPES, record.indices, strict=True):
            crops = models.packed(model, word).crops
            shares = [11 // crops + (crop < 11 % crops) for crop in range(crops)]
            assert torch.bincount(indices // 16, minlength=crops).tolist() == shares


@pytest.mark.parametrize(
    ("method", "budget"),
    [(Scope(), "joint"), (FoPru(), "joint"), (GPrune(), "per_branch"), (HoloV(), "joint"), (PAR(route="drop"), "joint")],
    ids=by_name,
)
@pytest.mark.parametrize("newlines", ["keep", "drop"])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("name", ["onevision", "onevision-unpooled"])
def test_options_of_pooled_images(name, method, budget, newlines, positions):
    model = build(name)
    prompts = [[3, SHAPES[0], SHAPES[1], 4, Image(168, 168)], TEXT, [5, SHAPES[3], 6, "video"]]
    record = check(model, prompts, method, 11, budget=budget, newlines=newlines, positions=positions, padding="exclude")
    assert [len(i) for i in record.indices] == [11] * 5
    assert record.newlines[-1] == 1  # behind a video, whatever is dropped


@each_method
def test_onevision_takes_no_tiles_where_a_prompt_has_several_images(method):
    model = build("onevision")
    prompts = [[3, SHAPES[0], SHAPES[1], 4], TEXT, [5, SHAPES[2], 6]]
    record = check(model, prompts, method, 6, one_by_one=True)
    assert record.tokens_before[:2] == [17, 17] and record.newlines[:2] == [1, 1]
    alone = check(model, [prompts[2]], method, 6, one_by_one=True)
    assert alone.tokens_before == record.tokens_before[2:]


@pytest.mark.parametrize("budget", ["per_crop", "joint"])
@pytest.mark.parametrize("positions", ["contiguous", "original"])
@pytest.mark.parametrize("name", ["next-video", "video-llava"])
def test_options_of_videos(name, budget, positions):
    model = build(name)
    prompts = [[3, "video", 4], [5, "video", 6, "image"]]
    for keep in (2, 8, 0.4):  # two of three frames get one; unequal shares; a fraction
        record = check(model, prompts, Scope(), keep, budget=budget, positions=positions, padding="exclude")
        if budget == "per_crop" and keep != 0.4:
            patches = 4 if name == "next-video" else 16
            shares = [keep // 3 + (frame < keep % 3) for frame in range(3)]
            for indices, scores in zip(record.indices[1:], record.scores[1:], strict=True):
                assert torch.bincount(indices // patches, minlength=3).tolist() == shares
                # a frame without a share is never looked at
                assert scores.isnan().tolist() == [not share for share in shares for _ in range(patches)]


@pytest.mark.parametrize("name", ["next-video", "onevision", "video-llava"])
@pytest.mark.parametrize("frames", [1, 5])
def test_videos_of_other_lengths(name, frames):
    for method in METHODS.values():
        check(build(name), [[3, "video", 4], [5, "video", 6]], method, 3, frames=frames)


def test_fopru_keeps_whole_rows_of_every_crop():
    for name, prompts, keep in [
        ("next", [[3, "image", 4, Image(60, 200)]], 20),
        ("next-video", [[3, "video", 4]], 4),
        ("video-llava", [[3, "video", 4, "image"]], 12),
    ]:
        record = check(build(name), prompts, FoPru("row"), keep, padding="include")
        width = 2 if name == "next-video" else 4
        for indices in record.indices:
            rows = indices.view(-1, width)
            assert len(indices) == keep and (rows[:, 0] % width == 0).all()
            assert rows.equal(rows[:, :1] + torch.arange(width))


def test_crops_without_a_dimension_of_their_own():
    """NeXT and OneVision take [crops, 3, S, S] as well; the sizes tell where an image ends."""
    for name in ("next", "onevision"):
        model = build(name)
        prompts = [[3, SHAPES[0], 4, SHAPES[2]]]
        x = models.inputs(model, prompts)
        counts = [models.packed(model, word).calls for word in models.images_of(prompts)]
        flat = torch.cat([crops[:n] for crops, n in zip(x["pixel_values"], counts, strict=True)])
        with prune(model, Scope(), 9) as pruning:
            expected, kept = model(**x).logits, pruning.last.indices
            assert model(**x | {"pixel_values": flat}).logits.equal(expected)
            assert [i.tolist() for i in pruning.last.indices] == [i.tolist() for i in kept]


# -------------------------------------------------------------------------------------------------- merging


class Watched(PAR):
    """PAR that remembers what it answered."""

    def select(self, context, k):
        answer = super().select(context, k)
        self.answers.append((context, answer))
        return answer


@pytest.mark.parametrize("name", CLASSES)
def test_par_merges_the_tokens_that_it_says(name):
    """Kept tokens are means over the unpruned model's features of the candidates that were assigned to them."""
    model = build(name)
    word = "video" if name in ("next-video", "video-llava") else Image(100, 80)
    prompts = [[3, 4, word, 5, 6]]
    x = models.inputs(model, prompts)
    method = Watched(threshold=0.3, pool=0.9)
    object.__setattr__(method, "answers", [])
    with prune(model, method, 6) as pruning:
        logits = model(**x).logits
    ((context, answer),) = method.answers
    (visual,) = visuals_of(model, prompts, x)[1]
    place = {t: i for i, t in enumerate(visual.packed.tokens)}
    order = visual.packed.candidates()
    torch.testing.assert_close(context.projected[0], visual.features[[place[t] for t in order]], atol=1e-5, rtol=1e-4)
    slots = answer.assignment[0].tolist()
    means = {}
    for slot, index in enumerate(answer.indices[0].tolist()):
        members = {order[index], *(order[i] for i, s in enumerate(slots) if s == slot)}
        means[order[index]] = visual.features[[place[m] for m in sorted(members)]].mean(0)
    assert sum(s >= 0 for s in slots) > 6 and sorted(means) == pruning.last.indices[0].tolist()

    def change(number, visual, tokens):
        kept = [t for t in visual.packed.tokens if t < 0 or t in means]
        return torch.stack([means.get(t, old) for t, old in zip(kept, tokens, strict=True)])

    same(logits, logits_of(model, sequences(model, prompts, x, pruning, change=change)), "left")


# -------------------------------------------------------------------------------------------------- generate


def greedy_by_hand(model, embeds, positions, following, steps):
    """Greedy decoding without a cache and without an end; behind the prompt positions count on from ``following``."""
    found = []
    for _ in range(steps):
        logits = logits_of(model, [(embeds, positions)])[0][-1]
        logits[models.END] = -torch.inf
        found.append(int(logits.argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[found[-1]]]))], dim=1)
        if positions is not None:
            positions = torch.cat([positions, torch.tensor([[following]])], dim=1)
            following += 1
    return found


@pytest.mark.parametrize("method", [Scope(), GPrune(), PAR(route="drop")], ids=by_name)
@pytest.mark.parametrize("name", CLASSES)
def test_generate_continues_the_sequence_built_by_hand(name, method):
    model = build(name)
    prompts = [*mixed(model)[:3], [2, 4, "image"]]  # the last ends in its image
    x = models.inputs(model, prompts)
    greedy = dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    with prune(model, method, 7) as pruning:
        output = model.generate(**x, **greedy)
    width = x["input_ids"].shape[1]
    assert output[:, :width].equal(x["input_ids"])
    lengths = x["attention_mask"].sum(1).tolist()
    for row, (embeds, positions), length in zip(
        output[:, width:].tolist(), sequences(model, prompts, x, pruning), lengths, strict=True
    ):
        assert row == greedy_by_hand(model, embeds, positions, length, 5)
        if positions is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long)
            assert row == model.generate(inputs_embeds=embeds, attention_mask=mask, **greedy)[0].tolist()
