"""Inputs and options that do not fit: every message says what is wrong and what to do, and the model goes on."""

import warnings

import pytest
import torch

pytest.importorskip("transformers")

import models
from by_hand import CLASSES, build, check
from models import Image

from vtkernels.integrations import prune
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Scope, Uniform


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("generate", [False, True], ids=["forward", "generate"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("image_sizes"), r"image_sizes is missing: give everything that the processor returned"),
        (lambda x: x.update(image_sizes=x["image_sizes"][:1]), r"image_sizes has 1 rows for 2 images; give pixel_values and"),
        (lambda x: x.update(pixel_values=x["pixel_values"][:1]), r"image_sizes has 2 rows for 1 images"),
        (lambda x: x.update(image_sizes=x["image_sizes"].flatten()), r"height and width .* \[images, 2\], got shape \[4\]"),
        (
            lambda x: x.update(image_sizes=torch.ones(2, 3)),
            r"height and width of every image, \[images, 2\], got shape \[2, 3\]",
        ),
        (lambda x: x.update(image_sizes=x["image_sizes"] * 0), r"image_sizes must be positive, got 0 x 0 for image 0"),
        (
            lambda x: x.update(pixel_values=x["pixel_values"][..., :28, :28]),
            r"crops of 28 x 28 pixels, the vision tower takes 56 x 56; the processor must have the image size",
        ),
        (
            lambda x: x.update(pixel_values=x["pixel_values"][:, :4]),
            r"pixel_values has 4 crops per image, but image 0 of size 100 x 80 makes 5; the processor must",
        ),
        (
            lambda x: x.update(pixel_values=x["pixel_values"].flatten(0, 1)),
            r"pixel_values has 10 crops, but image_sizes make 9",
        ),
        (
            lambda x: x.update(pixel_values=x["pixel_values"][0, 0]),
            r"pixel_values must be a tensor \[images, crops, 3, H, W\] or .*got \[3,",
        ),
        (lambda x: x.update(pixel_values=list(x["pixel_values"])), r"pixel_values must be a tensor .* got list"),
        (
            lambda x: x.update(vision_feature_select_strategy="full"),
            r"= 'full' does not leave CLIPVisionModel a full grid .* 'default'",
        ),
        (
            lambda x: x.update(image_sizes=x["image_sizes"].flip(1)),
            r"row 0 has 140 placeholders \(90\), but 2 images of 70 or 76 tokens were given; expand the prompt as for",
        ),
        (
            lambda x: x.update(input_ids=torch.tensor([[3, 90, 4, 90]]), attention_mask=torch.ones(1, 4, dtype=torch.long)),
            r"row 0 has 2 placeholders \(90\), but 2 images of 68 or 72 tokens were given",
        ),
        (
            lambda x: x.update(input_ids=torch.tensor([[3, 4]]), attention_mask=torch.ones(1, 2, dtype=torch.long)),
            r"it has placeholders \(90\) for 0 images, but 2 were given; expand the prompt to 68 or 72 placeholders per image",
        ),
    ],
)
def test_images_that_do_not_fit(change, message, generate):
    model = build("next")
    x = models.inputs(model, [[3, "image", 4, Image(60, 200)]])
    with prune(model, Scope(), 7) as pruning:
        expected = model(**x).logits
        bad = dict(x)
        change(bad)
        with pytest.raises(ValueError, match=message):
            model.generate(**bad, max_new_tokens=2) if generate else model(**bad)
        assert model(**x).logits.equal(expected) and len(pruning.last.indices) == 2  # and the model goes on


@pytest.mark.parametrize("name", ["next-video", "onevision", "video-llava"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v[0], r"pixel_values_videos must have shape \[videos, frames, 3, H, W\], got \[3, 3, 56, 56\]"),
        (lambda v: v[:, :2], r"row 0 has \d+ placeholders \(91\), but 1 videos of \d+ tokens were given"),
        (
            lambda v: v.repeat(2, 1, 1, 1, 1),
            r"has placeholders \(91\) for 1 videos, but 2 were given; expand the prompt to \d+",
        ),
        (
            lambda v: v[..., :28, :28],
            r"frames of 28 x 28 pixels, the vision tower takes 56 x 56|size \(28\*28\) doesn't match model",
        ),
    ],
)
def test_videos_that_do_not_fit(name, change, message):
    model = build(name)
    x = models.inputs(model, [[3, "video", 4]])
    with prune(model, Scope(), 7), pytest.raises(ValueError, match=message):
        model(**x | {"pixel_values_videos": change(x["pixel_values_videos"])})


def test_onevision_refuses_what_transformers_would_take_in_some_calls_only():
    model = build("onevision")
    x = models.inputs(model, [[3, "image", 4, Image(60, 200)]])
    with prune(model, Scope(), 7):
        with pytest.raises(
            ValueError, match=r"= 'anyres_max_9' is not that of the model's config, 'anyres_max_2'.* set model.config"
        ):
            model(**x, vision_aspect_ratio="anyres_max_9")
        with pytest.raises(
            ValueError, match="batch_num_images counts 3 images, but there are 2; it has one entry for every prompt"
        ):
            model(**x, batch_num_images=torch.tensor([3]))
        with pytest.raises(ValueError, match="2 images of 17 tokens were given"):
            model(**x, batch_num_images=torch.tensor([2]))
        with pytest.raises(
            ValueError, match=r"= 'default' does not leave SiglipVisionModel a full grid of patches; take 'full'"
        ):
            model(**x, vision_feature_select_strategy="default")
        # an encoder called by itself takes it, as without pruning
        core = model.model
        pruned = core.get_image_features(x["pixel_values"], x["image_sizes"], vision_aspect_ratio="anyres_max_9")
        assert [len(t) for t in getattr(pruned, "pooler_output", pruned)] == [7, 7]


def of_all_sizes(model):
    """Images of 64, 32, 16 and 16 patches behind their padding, and a video."""
    return [
        [3, "image", 4, Image(56, 50)],
        [5, Image(1000, 3), 6, Image(3, 1000), *(["video"] * models.takes_videos(model)), 7],
    ]


def words_of(prompts):
    return models.images_of(prompts) + models.videos_of(prompts)


def kept_and_warnings(model, method, keep, **options):
    """Tokens kept of each image, and what was said about them."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        record = check(model, of_all_sizes(model), method, keep, **options)
    return [len(indices) for indices in record.indices], [str(w.message) for w in said if "keep = " in str(w.message)]


@pytest.mark.parametrize("newlines", ["keep", "drop"])
@pytest.mark.parametrize("method", [Scope(), GPrune(), HoloV(), PAR(route="drop")], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("name", ["next", "next-video", "onevision"])
def test_more_than_an_image_has_keeps_all_of_it(name, method, newlines):
    model = build(name)
    kept, said = kept_and_warnings(model, method, 1000, newlines=newlines, padding="exclude")
    assert kept == [len(models.packed(model, word).candidates()) for word in words_of(of_all_sizes(model))]
    kinds = ["images", "videos"][: 1 + models.takes_videos(model)]
    assert len(said) == len(kinds) and all(kind in text for kind, text in zip(kinds, said, strict=True))


@pytest.mark.parametrize("newlines", ["keep", "drop"])
@pytest.mark.parametrize(("method", "keep"), [(Scope(), 1000), (Scope(), 1.0), (Uniform(), 70), (FoPru("row"), 1000)])
def test_padding_that_is_kept_never_lengthens_the_prompt(method, keep, newlines):
    """It competes with the patches of the image; more than the prompt has placeholders for cannot be kept."""
    model, expected = build("next"), []
    for word in words_of(of_all_sizes(model)):
        packed = models.packed(model, word)
        newline_count = len(packed.tokens) - len(packed.candidates())
        room = len(packed.tokens) - (newline_count if newlines == "keep" else 0)
        most = min(room, len(packed.candidates("include")))
        expected.append(min(most // 4 * 4 if method == FoPru("row") else most, keep if keep > 1 else 1000))
    kept, said = kept_and_warnings(model, method, keep, newlines=newlines, padding="include")
    assert kept == expected and len(said) == (keep != 1.0)


def test_too_many_tokens_are_said_once():
    model = build("next")
    x = models.inputs(model, of_all_sizes(model))
    with prune(model, Scope(), 60, padding="exclude") as pruning, pytest.warns(UserWarning) as said:
        model(**x)
        model(**x)
        model.generate(**x, max_new_tokens=2)
    (warning,) = [str(w.message) for w in said if "keep" in str(w.message)]
    assert warning == (
        "keep = 60 is more than the 32 patch tokens that the prompt has for one of the images: that one keeps 32 (said once)"
    )
    assert [len(i) for i in pruning.last.indices] == [60, 32, 16, 16]


def test_video_llava_takes_more_tokens_of_a_video_than_an_image_has():
    model = build("video-llava")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(model, [[3, "video", 4]], Scope(), 40).tokens_after == [43]
    with pytest.warns(
        UserWarning, match="keep = 40 is more than the 16 patch tokens that the prompt has for one of the images"
    ):
        record = check(model, [[3, "video", 4, "image"]], Scope(), 40)
    assert [len(i) for i in record.indices] == [16, 40]


@pytest.mark.parametrize(
    ("name", "method", "keep", "options", "message"),
    [
        ("next", Scope(), 7, {"budget": "even"}, r"budget must be 'per_crop' or 'joint', got 'even'"),
        ("next", Scope(), 7, {"budget": "per_branch"}, r"budget must be 'per_crop' or 'joint' with Scope, got 'per_branch'"),
        ("next", GPrune(), 7, {"budget": "joint"}, r"budget must be 'per_branch' with GPrune, got 'joint'"),
        ("next", HoloV(), 7, {"budget": "per_crop"}, r"budget must be 'joint' with HoloV, got 'per_crop'"),
        ("next", Scope(), 7, {"newlines": "some"}, r"newlines must be 'keep' or 'drop', got 'some'"),
        ("next", Scope(), 7, {"padding": True}, r"padding must be 'include' or 'exclude', got True"),
        ("next", Scope(), 7, {"positions": "gapped"}, r"positions must be 'contiguous' or 'original', got 'gapped'"),
        (
            "next",
            Scope(),
            7,
            {"positions": "original"},
            r"positions = 'original' needs padding = 'exclude': .* \(Scope includes the padding unless padding says",
        ),
        ("next", GPrune(), 7, {"padding": "include"}, r"needs padding = 'exclude': .* \(GPrune takes those positions unless"),
        ("next-video", Scope(), 7, {"positions": "original", "padding": "include"}, r"no position in the whole prompt$"),
        (
            "onevision",
            Scope(),
            7,
            {"budget": "per_crop"},
            r"budget must be 'joint' with Scope for the images of LlavaOnevisionForConditionalGeneration, got 'per_crop'",
        ),
        (
            "onevision",
            Scope(),
            7,
            {"padding": "include"},
            r"padding must be 'exclude' for LlavaOnevision.*, which cuts the padding off",
        ),
        ("llava", Scope(), 17, {}, r"keep = 17 must be between 1 and the 16 patch tokens that this model has per image"),
        ("vipllava", FoPru("row"), 7, {}, r"FoPru: strategy 'row' keeps whole rows of 4 tokens, got keep = 7; take 4 or 8"),
        ("next", Scope(), 0, {}, r"keep = 0 must be at least 1, or a fraction in \(0, 1\]"),
        ("onevision", Scope(), 1.5, {}, r"keep = 1.5 must be a fraction in \(0, 1\], or an int from 1 \(tokens per image\)"),
        ("video-llava", Scope(), float("nan"), {}, r"keep = nan must be a fraction in \(0, 1\]"),
    ],
)
def test_options_that_do_not_fit(name, method, keep, options, message):
    model = build(name)
    with pytest.raises(ValueError, match=message):
        prune(model, method, keep, **options)
    prune(model, Uniform(), 3).remove()  # nothing was left behind


def test_original_positions_need_no_word_about_padding_where_there_is_none():
    for name in ("llava", "onevision", "video-llava", "vipllava"):
        model = build(name)
        check(model, [[3, "image", 4], [5, 6]], Scope(), 5, positions="original")


@pytest.mark.parametrize(
    ("keep", "options", "message"),
    [
        (10, {}, r"FoPru: strategy 'row' keeps whole rows of 4 tokens, got keep = 10; take 8 or 12"),
        (
            12,
            {"budget": "joint"},
            r"needs candidates that fill a grid of patches; use FoPru\(strategy='rank'\), or, where an image has",
        ),
        (12, {"padding": "exclude"}, r"needs candidates that fill a grid .* budget = 'per_crop' and padding = 'include'"),
    ],
)
def test_rows_that_do_not_fit_a_tiled_image(keep, options, message):
    model = build("next")
    with prune(model, FoPru("row"), keep, **options), pytest.raises(ValueError, match=message):
        model(**models.inputs(model, [[3, "image", 4]]))


def test_a_class_that_is_not_supported_names_those_that_are():
    for other in (build("next").model, build("llava").model.language_model, torch.nn.Linear(1, 1)):
        with pytest.raises(TypeError, match=f"vt.prune does not support {type(other).__name__}; supported: ") as error:
            prune(other, Scope(), 5)
        assert all(type(build(name)).__name__ in str(error.value) for name in CLASSES)
