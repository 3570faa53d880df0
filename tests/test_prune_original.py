"""Pruning a model of the original LLaVA code base: a stand-in with the same members, and the real classes where installed."""

import copy
import functools
import importlib.util
import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import nn

pytest.importorskip("transformers")

import packing
from original_code import (
    END,
    IMAGE,
    PAD,
    PATCHES,
    PINPOINTS,
    PIXELS,
    SIDE,
    START,
    StandIn,
    options,
    real,
    stand_in,
    vision_model,
)
from packing import CLASS, NEWLINE
from transformers import LlamaConfig, LlamaForCausalLM

import vtkernels as vt
from vtkernels.integrations import Pruning, prune
from vtkernels.integrations.original import recognises
from vtkernels.methods import PAR, Context, FoPru, GPrune, HoloV, Random, Scope, Selection, TopAttention, Uniform

INSTALLED = importlib.util.find_spec("llava") is not None
TEXT = [10, 11, 12]

METHODS = {
    "Scope": Scope(),
    "FoPru": FoPru(),
    "GPrune": GPrune(threshold=0.2),
    "HoloV": HoloV(),
    "PAR-drop": PAR(route="drop"),
    "TopAttention": TopAttention(),
    "Random": Random(1),
    "Uniform": Uniform(),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------------------------------ the models


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a small CLIP tower, from which the code base loads it."""
    from transformers import CLIPImageProcessor

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    with torch.no_grad():
        vision_model("clip").save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": PIXELS}, crop_size=PIXELS).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["stand-in", "llava"] if INSTALLED else ["stand-in"])
def build(request):
    """Makes a model: ``build(side=..., mm_...=...)``."""
    return functools.partial(real, request.getfixturevalue("checkpoint")) if request.param == "llava" else stand_in


@pytest.fixture
def model(build):
    return build()


# ------------------------------------------------------------------------------------------------------------ the inputs


class Picture(NamedTuple):
    """A word of a prompt: an image of this size, in ``crops`` crops or in those that anyres makes of it (None)."""

    width: int
    height: int
    crops: int | None = 1


IMG = Picture(80, 100)
PROMPTS = [[3, 4, IMG, 5, 6], TEXT, [7, IMG, IMG, 8, IMG], [*range(13, 30), IMG]]
SHAPES = (Picture(100, 80, None), Picture(200, 60, None), Picture(56, 56), Picture(50, 160, None), Picture(112, 112, None))
MIXED = [[3, SHAPES[0], SHAPES[1], 4, SHAPES[2]], TEXT, [5, SHAPES[3], 6, SHAPES[4]]]


def pictures(prompts):
    """In the order that the code base counts them: a row without an image uses up one all the same."""
    return [word for prompt in prompts for word in ([w for w in prompt if isinstance(w, Picture)] or [IMG])]


def packed_of(word):
    return packing.anyres(word[1::-1], [[h, w] for w, h in PINPOINTS], PIXELS, SIDE)


def packed(model, word):
    if word.crops is None:
        tiled = packed_of(word)
        tokens = [t for t in tiled.canvas if t != NEWLINE]
        return tiled if "unpad" in model.config.mm_patch_merge_type else replace(tiled, tokens=tokens, canvas=tokens)
    class_tokens = int(model.config.mm_vision_select_feature == "cls_patch")
    newline = "unpad" in model.config.mm_patch_merge_type
    return packing.plain(PATCHES, frames=word.crops, class_tokens=class_tokens, newline=newline)


def draw(count, seed):
    return torch.randn(count, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


def inputs(prompts, *, form="tensor", crops=None, pad="right", mask=True):
    """What the code base is called with. ``form`` of the images: "tensor", "list", "list4" or "tensor5"."""
    rows = [[IMAGE if isinstance(word, Picture) else word for word in prompt] for prompt in prompts]
    width = max(map(len, rows))
    padded = [[PAD] * (width - len(r)) + r if pad == "left" else r + [PAD] * (width - len(r)) for r in rows]
    words = pictures(prompts)
    counts = [word.crops or packed_of(word).crops for word in words]
    images = [draw(count, seed) for seed, count in enumerate(counts)]
    forms = {
        "tensor": lambda: torch.cat(images),
        "list": lambda: [image[0] for image in images],
        "list4": lambda: images,
        "tensor5": lambda: torch.stack(images),
    }
    x = {"input_ids": torch.tensor(padded), "images": forms[form](), "image_sizes": [tuple(word[:2]) for word in words]}
    if mask:
        ones = [[1] * len(r) for r in rows]
        x["attention_mask"] = torch.tensor(
            [[0] * (width - len(r)) + r if pad == "left" else r + [0] * (width - len(r)) for r in ones]
        )
    return x, images


def generated(model, x, **how):
    """``generate`` takes the ids by another name."""
    rest = {name: value for name, value in x.items() if name != "input_ids"}
    return model.generate(x["input_ids"], **rest, max_new_tokens=5, do_sample=False, **how)


# ------------------------------------------------------------------------------------------------------------ by hand


def features(model, images):
    """[crops, V, D] of every image: tower and projector of the unpruned model."""
    core = model.get_model()
    return [core.mm_projector(core.get_vision_tower()(image)) for image in images]


def kept_tokens(model, word, own, indices, *, newlines="keep", padding="exclude"):
    """[after, D]: the tokens of an image that stay, in the order of the unpruned prompt."""
    shape, kept = packed(model, word), set(indices.tolist())
    assert len(kept) == len(indices) and (indices.diff() > 0).all()
    fixed, rows = own.shape[1] - shape.patches, []
    crop = 0
    for token in shape.canvas if padding == "include" else shape.tokens:
        if token == NEWLINE and (newlines == "keep" or word.crops is not None):
            rows.append(model.get_model().image_newline)
        elif token == CLASS:
            rows.append(own[crop, 0])
            crop += 1
        elif token in kept:
            rows.append(own[token // shape.patches, fixed + token % shape.patches])
    return torch.stack(rows)


def rows_of(model, prompts, tokens):
    """[1, L, D] of each prompt with the given tokens of its images."""
    tokens, result = iter(tokens), []
    for prompt in prompts:
        own = [next(tokens) for _ in pictures([prompt])]
        parts = []
        for word in prompt:
            parts.append(own.pop(0) if isinstance(word, Picture) else model.get_model().embed_tokens(torch.tensor([word])))
        result.append(torch.cat(parts)[None])
    return result


def same(logits, expected, side):
    """Row by row, padding not compared."""
    for row, own in zip(logits, expected, strict=True):
        n = own.shape[1]
        got = row[-n:] if side == "left" else row[:n]
        torch.testing.assert_close(got, own[0], rtol=1e-4, atol=1e-4)
    assert logits.shape[1] == max(own.shape[1] for own in expected)


def check(model, prompts, method, keep, *, form="tensor", side="right", **how):
    """Prune, call, and compare with the prompt built by hand from the unpruned tokens and the record."""
    x, images = inputs(prompts, form=form)
    own = features(model, images)
    with prune(model, method, keep, positions="contiguous", **how) as pruning:
        output, record = model(**x), pruning.last
        assert model(**x).logits.equal(output.logits)
    options = {name: getattr(pruning.options, name) for name in ("newlines", "padding")}
    words = pictures(prompts)
    assert len(record.indices) == len(record.scores) == len(record.newlines) == len(words)
    tokens = [kept_tokens(model, *triple, **options) for triple in zip(words, own, record.indices, strict=True)]
    assert record.tokens_after == [len(t) for t in tokens]
    assert record.tokens_before == [len(packed(model, word).tokens) for word in words]
    rows = rows_of(model, prompts, tokens)
    same(output.logits, [LlamaForCausalLM.forward(model, inputs_embeds=row).logits for row in rows], side)
    return record


@each_method
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("form", ["tensor", "list", "list4", "tensor5"])
def test_logits_are_those_of_the_prompt_built_by_hand(build, method, side, form):
    record = check(build(side), PROMPTS, method, 6, form=form, side=side)
    assert [len(i) for i in record.indices] == [6] * 6
    assert all(s is None or (s.dtype, s.shape) == (torch.float32, (PATCHES,)) for s in record.scores)


def test_tokens_that_a_method_loses_are_zero_vectors(model):
    x, images = inputs([[3, IMG, 4]])
    own = features(model, images)[0][0]
    with prune(model, HoloV(crops=7, variant="released"), 13) as pruning:
        logits, (indices,) = model(**x).logits, pruning.last.indices
    lost = int((indices < 0).sum())
    assert lost
    tokens = torch.cat([own[indices[: 13 - lost]], torch.zeros(lost, own.shape[1])])
    same(logits, [LlamaForCausalLM.forward(model, inputs_embeds=rows_of(model, [[3, IMG, 4]], [tokens])[0]).logits], "right")


def query_and_key(model, pixels, number):
    """[B, H, T, d] of a layer of the vision tower."""
    tower = model.get_vision_tower().vision_tower
    layer = getattr(tower, "vision_model", tower).encoder.layers[number]
    hidden = layer.layer_norm1(tower(pixels, output_hidden_states=True).hidden_states[number])
    return [p(hidden).unflatten(2, (4, -1)).transpose(1, 2) for p in (layer.self_attn.q_proj, layer.self_attn.k_proj)]


def attention(model, pixels, number):
    """[B, T, T], mean over heads."""
    query, key = query_and_key(model, pixels, number)
    return (query @ key.transpose(2, 3) / query.shape[3] ** 0.5).softmax(3).mean(1)


@each_method
def test_indices_are_the_choice_of_the_method(model, method):
    """Everything that the method is given, computed without the integration."""
    x, images = inputs([[5, IMG, 6, IMG, 7]])
    pixels, core = torch.cat(images), model.get_model()
    query, key = query_and_key(model, pixels, 1)  # of three layers, the one whose output is hidden_states[-2]
    text = torch.tensor([[5, 6, 7]] * 2)
    context = Context(
        batch=2,
        tokens=PATCHES,
        device=pixels.device,
        grid=(SIDE, SIDE),
        features=core.get_vision_tower()(pixels),
        projected=torch.cat(features(model, images)),
        query=query[:, :, 0],
        queries=query,
        key=key,
        prefix=1,
        prompt=core.embed_tokens(text),
        prompt_ids=text,
        prompt_lengths=torch.tensor([3, 3]),
    )
    with prune(model, method, 6, positions="contiguous") as pruning:
        model(**x)
    expected = method.select(context, 6)
    assert [i.tolist() for i in pruning.last.indices] == expected.indices.tolist()
    if expected.scores is not None:
        torch.testing.assert_close(torch.stack(pruning.last.scores), expected.scores)


def test_attention_is_that_of_the_layer_that_is_looked_at(build):
    for layer, number in ((-2, 1), (-1, 2), (1, 0)):
        model = build(mm_vision_select_layer=layer)
        x, images = inputs([[5, IMG]])
        expected = attention(model, images[0], number)[0, 0, 1:]
        with prune(model, TopAttention(), 4) as pruning:
            model(**x)
        torch.testing.assert_close(pruning.last.scores[0], expected)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("method", [Scope(), HoloV(), PAR(route="drop")], ids=lambda m: type(m).__name__)
def test_generate_is_that_of_the_prompt_built_by_hand(build, method, beams):
    model = build("left")
    x, images = inputs(PROMPTS)
    own = features(model, images)
    with prune(model, method, 5) as pruning:
        tokens, record = generated(model, x, num_beams=beams), pruning.last
    assert record.tokens_after == [5] * 6  # of the prefill
    kept = [kept_tokens(model, *triple) for triple in zip(pictures(PROMPTS), own, record.indices, strict=True)]
    rows = rows_of(model, PROMPTS, kept)
    width = max(row.shape[1] for row in rows)
    embeds = torch.cat([nn.functional.pad(row, (0, 0, width - row.shape[1], 0)) for row in rows])
    mask = torch.tensor([[0] * (width - row.shape[1]) + [1] * row.shape[1] for row in rows])
    expected = LlamaForCausalLM.generate(
        model, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=5, do_sample=False, num_beams=beams
    )
    assert tokens.equal(expected)
    assert not tokens.equal(generated(model, x, num_beams=beams))


@each_method
def test_all_tokens_kept_is_the_unpruned_model(build, method):
    for how, prompts, form in (
        ({"side": "left"}, PROMPTS, "tensor"),
        ({"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}, MIXED, "list4"),
    ):
        model = build(**how)
        x, _ = inputs(prompts, form=form)
        expected, tokens = model(**x).logits, generated(model, x)
        with prune(model, method, 1.0, positions="contiguous", newlines="keep", padding="exclude") as pruning:
            torch.testing.assert_close(model(**x).logits, expected, rtol=1e-4, atol=1e-4)
            assert generated(model, x).equal(tokens)
        assert pruning.last.tokens_after == pruning.last.tokens_before


def test_a_row_of_a_batch_is_that_row_alone(model):
    x, images = inputs(PROMPTS)
    with prune(model, Scope(), 5) as pruning:
        together, record = model(**x).logits, pruning.last
        alone, indices, start = [], [], 0
        for prompt in PROMPTS:
            count = len(pictures([prompt]))
            own = {"input_ids": inputs([prompt])[0]["input_ids"], "images": torch.cat(images[start : start + count])}
            alone.append(model(**own).logits)
            indices += pruning.last.indices
            start += count
    assert [i.tolist() for i in record.indices] == [i.tolist() for i in indices]
    same(together, alone, "right")


def test_padding_on_either_side_and_no_mask_at_all(model):
    with prune(model, Scope(), 5):
        right, left = (model(**inputs(PROMPTS, pad=side)[0]).logits for side in ("right", "left"))
        assert left.equal(right)  # the code base takes padding off and puts it on where its config says
        whole = [[3, IMG, 4], [5, IMG, 6]]
        masked, bare = (model(**inputs(whole, mask=mask)[0]).logits for mask in (True, False))
        assert bare.equal(masked)


def test_labels_follow_the_shortened_prompt(model):
    x, images = inputs([[3, IMG, 5, 6, 7]])
    own = features(model, images)
    with prune(model, Scope(), 5) as pruning:
        loss = model(**x, labels=x["input_ids"].masked_fill(x["input_ids"] == IMAGE, -100)).loss
    (row,) = rows_of(model, [[3, IMG, 5, 6, 7]], [kept_tokens(model, IMG, own[0], pruning.last.indices[0])])
    labels = torch.tensor([[3, *[-100] * 5, 5, 6, 7]])
    torch.testing.assert_close(loss, LlamaForCausalLM.forward(model, inputs_embeds=row, labels=labels).loss)


def test_class_tokens_stay(build):
    model = build(mm_vision_select_feature="cls_patch")
    record = check(model, PROMPTS, Scope(), 6)
    assert record.tokens_before == [17] * 6 and record.tokens_after == [7] * 6
    several = [[3, Picture(56, 56, 3), 4, Picture(56, 56, 1)]]
    assert check(model, several, TopAttention(), 6, form="list4").tokens_after == [9, 7]


# ------------------------------------------------------------------------------------------------------------ crops


@pytest.mark.parametrize("method", [Scope(), HoloV(), GPrune(threshold=0.2), Uniform()], ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("keep", [7, 0.4])
def test_crops_one_behind_the_other(model, method, keep):
    prompts = [[3, Picture(56, 56, 3), 4, Picture(56, 56, 1)], [5, Picture(56, 56, 2)]]
    record = check(model, prompts, method, keep, form="list4")
    if keep == 7:
        assert record.tokens_after == [7, 7, 7]
        if isinstance(method, Scope):
            assert torch.bincount(record.indices[0] // PATCHES).tolist() == [3, 2, 2]
    assert check(model, [[5, Picture(56, 56, 2), Picture(56, 56, 2)]], method, keep, form="tensor5").tokens_before == [32, 32]


@pytest.mark.parametrize("newlines", ["keep", "drop"])
@pytest.mark.parametrize("padding", ["include", "exclude"])
@pytest.mark.parametrize(
    ("method", "budget"),
    [(Scope(), "per_crop"), (Scope(), "joint"), (GPrune(threshold=0.2), "per_branch"), (HoloV(), "joint"), (FoPru(), "joint")],
    ids=lambda x: x if isinstance(x, str) else type(x).__name__,
)
def test_tiles_without_their_padding(build, method, budget, padding, newlines):
    model = build(mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres")
    how = {"budget": budget, "padding": padding, "newlines": newlines}
    record = check(model, MIXED, method, 11, form="list4", **how)
    assert [len(i) for i in record.indices] == [11] * 6
    assert record.newlines[3] == 1  # the image of the row of text: one crop, one newline at its end


def test_tiles_with_their_padding(build):
    model = build(mm_patch_merge_type="spatial", image_aspect_ratio="anyres")
    prompts = [[3, Picture(112, 112, None), 4, Picture(56, 56)], [5, Picture(112, 56, None)]]
    record = check(model, prompts, Scope(), 11, form="list4", budget="joint")
    assert record.newlines == [0, 0, 0]
    # padding is part of the prompt here: whatever the option says, every patch is a candidate
    x, _ = inputs([[3, Picture(200, 60, None)]], form="list4")
    with prune(model, Scope(), 1.0, padding="exclude") as pruning:
        model(**x)
    assert pruning.last.tokens_after == pruning.last.tokens_before == [PATCHES * 4]


def test_a_limit_on_the_length_of_prompts_cuts_what_is_left(build):
    """The order of tiles is learned without it."""
    shapes = [[3, Picture(100, 80, None), *range(4, 30)]]
    x, _ = inputs(shapes, form="list4")
    how = {"mm_patch_merge_type": "spatial_unpad", "image_aspect_ratio": "anyres"}
    free, limited = build(**how), build(**how, tokenizer_model_max_length=20)
    with prune(free, Scope(), 11, newlines="drop"), prune(limited, Scope(), 11, newlines="drop") as pruning:
        expected, logits = free(**x).logits, limited(**x).logits
    assert expected.shape[1] == 38 and pruning.last.tokens_after == [11]
    torch.testing.assert_close(logits, expected[:, :20], rtol=1e-4, atol=1e-4)


def test_more_than_a_small_image_has_is_said_once(build):
    model = build(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad")
    x, _ = inputs(MIXED, form="list4")
    with prune(model, Scope(), 30) as pruning:
        with pytest.warns(UserWarning, match="keep = 30 is more than the 16 patch tokens"):
            model(**x)
        sizes = [len(i) for i in pruning.last.indices]
    assert sizes == [30, 30, 16, 16, 30, 30]


# ------------------------------------------------------------------------------------------------------------ the prompt


class Spy:
    """Keeps the first k and remembers what it was given."""

    needs = frozenset({"prompt"})

    def __init__(self, special_ids=None):
        self.special_ids, self.seen = special_ids, []

    def select(self, context, k):
        self.seen.append(context)
        return Selection(torch.arange(k).expand(context.batch, k))

    def prompts(self):
        return [
            row[:n].tolist()
            for c in self.seen
            for row, n in zip(c.prompt_ids, c.prompt_lengths.tolist(), strict=True)
        ]  # fmt: skip


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("call", ["forward", "generate"])
def test_each_image_is_given_the_text_of_its_row(model, pad, call):
    prompts = [[START, 3, 4, IMG, 5, END], [START, *TEXT], [7, IMG, IMG, PAD, 8]]
    x, _ = inputs(prompts, pad=pad)
    spy = Spy()
    with prune(model, spy, 3):
        model(**x) if call == "forward" else generated(model, x)
    assert spy.prompts() == [[3, 4, 5], TEXT, [7, 8], [7, 8]]
    (context,) = spy.seen  # not again for a decoded token
    assert context.prompt.equal(model.get_model().embed_tokens(context.prompt_ids))


def test_what_is_masked_is_no_image(model):
    spy = Spy()
    with prune(model, spy, 3):
        model(torch.tensor([[3, IMAGE, 4, IMAGE]]), attention_mask=torch.tensor([[1, 1, 1, 0]]), images=draw(1, 0))
    assert spy.prompts() == [[3, 4]]


def test_special_ids_are_what_the_method_says(model):
    x, _ = inputs([[START, 3, 4, IMG, 5]])
    spy = Spy(special_ids=[4])
    with prune(model, spy, 3):
        model(**x)
    assert spy.prompts() == [[START, 3, 5]]


def test_par_needs_text_and_the_prompt(model):
    x, images = inputs([[START, IMG, END]])
    with prune(model, PAR(), 3):
        with pytest.raises(ValueError, match="PAR needs the text of the prompt, but row 0 of input_ids"):
            model(**x)
        with pytest.raises(ValueError, match="PAR needs the prompt, which encode_images does not see"):
            model.encode_images(images[0])
        with pytest.raises(ValueError, match=r"its rows take 1 .* but 2 were given"):
            model(torch.tensor([[3, IMAGE, 4]]), images=draw(2, 0))


def test_merging_averages_what_it_does_not_keep(model):
    x, images = inputs([[3, IMG, 4]])
    method = PAR(threshold=0.2)
    with prune(model, method, 4) as pruning:
        logits = model(**x).logits
    own = features(model, images)[0]
    text = torch.tensor([[3, 4]])
    context = Context(1, PATCHES, own.device, projected=own, prompt=model.get_model().embed_tokens(text), prompt_ids=text,
                      prompt_lengths=torch.tensor([2]))  # fmt: skip
    choice = method.select(context, 4)
    tokens = vt.merge_tokens(own, choice.indices, choice.assignment)[0]
    assert not tokens.equal(own[0, choice.indices[0]])
    same(logits, [LlamaForCausalLM.forward(model, inputs_embeds=rows_of(model, [[3, IMG, 4]], [tokens])[0]).logits], "right")
    assert pruning.last.indices[0].equal(choice.indices[0])


# ------------------------------------------------------------------------------------------------------------ the life of it


def state(model):
    """Everything an instance could carry away: attributes and hooks of every module, identities and order included."""
    return {name: [(key, frozen(value)) for key, value in vars(module).items()] for name, module in model.named_modules()}


def frozen(value):
    if isinstance(value, dict):
        return [(key, frozen(item)) for key, item in value.items()]
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


@pytest.mark.parametrize("method", [Scope(), FoPru(), HoloV(), PAR(), Uniform()], ids=lambda m: type(m).__name__)
def test_remove_restores(model, method):
    x, _ = inputs(PROMPTS)
    generated(model, x)
    before, logits, tokens = state(model), model(**x).logits, generated(model, x)
    pruning = prune(model, method, 3)
    assert isinstance(pruning, Pruning) and state(model) != before
    assert model(**x).logits.shape != logits.shape
    generated(model, x)
    for _ in range(2):
        pruning.remove()
        assert state(model) == before
        assert model(**x).logits.equal(logits) and generated(model, x).equal(tokens)
    assert pruning.last.tokens_after == [3] * 6  # the record stays


def test_the_context_manager_removes_also_after_an_error(model):
    before = state(model)
    with pytest.raises(KeyboardInterrupt), prune(model, Scope(), 3):
        raise KeyboardInterrupt
    assert state(model) == before


def test_pruning_a_pruned_model_is_an_error(model):
    x, _ = inputs(PROMPTS)
    with prune(model, Scope(), 3), pytest.raises(RuntimeError, match=r"pruned already \(by Scope\); call remove"):
        prune(model, Uniform(), 3)
    with prune(model, Uniform(), 2) as pruning:
        model(**x)
    assert pruning.last.tokens_after == [2] * 6


def test_only_this_instance_is_pruned(build):
    model, other = build(), build()
    x, _ = inputs(PROMPTS)
    kinds = {kind: dict(vars(kind)) for kind in type(model).__mro__}
    whole = other(**x).logits
    with prune(model, Scope(), 3):
        assert model(**x).logits.shape != whole.shape
        assert other(**x).logits.equal(whole)
        twin = copy.deepcopy(model)
        assert twin(**x).logits.equal(model(**x).logits)
    assert model(**x).logits.equal(whole)
    assert twin(**x).logits.shape != whole.shape  # a pruned model of its own
    assert {kind: dict(vars(kind)) for kind in kinds} == kinds


def test_the_record_is_that_of_the_latest_prefill(model):
    x, _ = inputs(PROMPTS)
    text = torch.tensor([TEXT])
    with prune(model, Scope(), 3) as pruning:
        for call in (lambda: model(text), lambda: model.generate(text, max_new_tokens=3, do_sample=False)):
            model(**x)
            assert len(pruning.last.indices) == 6
            call()
            assert pruning.last.indices == []
        generated(model, x)
        assert len(pruning.last.indices) == 6


def test_images_that_are_encoded_alone(model):
    _, images = inputs([[3, IMG, IMG]])
    pixels = torch.cat(images)
    whole = model.encode_images(pixels)
    with prune(model, Scope(), 3) as pruning:
        kept = model.encode_images(pixels)
    expected = torch.stack([own[i] for own, i in zip(whole, pruning.last.indices, strict=True)])
    torch.testing.assert_close(kept, expected)


def test_gradients_flow_through_what_is_kept(model):
    x, _ = inputs([[3, IMG, 4]])
    with torch.enable_grad(), prune(model, Scope(), 3):
        model(**x).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.get_model().mm_projector.parameters())


def test_half_precision(model):
    model.to(torch.bfloat16)
    x, images = inputs([[3, IMG, 4]])
    images = [images[0].bfloat16()]
    own = features(model, images)
    with prune(model, Scope(), 3) as pruning:
        logits = model(x["input_ids"], images=images[0]).logits
    kept = own[0][0, pruning.last.indices[0]]
    assert kept.dtype == torch.bfloat16 and kept.shape[0] == 3
    expected = LlamaForCausalLM.forward(model, inputs_embeds=rows_of(model, [[3, IMG, 4]], [kept])[0]).logits
    torch.testing.assert_close(logits, expected, rtol=0.02, atol=0.02)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_is_refused_at_once(build):
    model = build()
    for error, how, message in (
        (ValueError, {"keep": 17}, "keep = 17 must be between 1 and the 16 patch tokens"),
        (TypeError, {"keep": "3"}, "keep must be an int"),
        (ValueError, {"positions": "original"}, "positions = 'original' is not possible on the original LLaVA code base"),
        (ValueError, {"method": GPrune()}, r"\(GPrune keeps the original positions .*; give positions='contiguous'"),
        (ValueError, {"budget": "all"}, "budget must be"),
        (TypeError, {"method": Scope}, "method must be an instance"),
    ):
        before = state(model)
        with pytest.raises(error, match=message):
            prune(model, **({"method": Scope(), "keep": 3} | how))
        assert state(model) == before


def test_configs_that_are_refused_at_once(build):
    model = build()
    tower = model.get_vision_tower()
    for owner, name, value, message in (
        (model.config, "mm_patch_merge_type", "spatial_maxpool2x2", "mm_patch_merge_type must be 'flat', 'spatial' or"),
        (model.config, "mm_projector_type", "pooler", "mm_projector_type = 'pooler' is none that projects every token"),
        (tower, "select_feature", "slicefour_patch", "mm_vision_select_feature must be 'patch' or 'cls_patch'"),
        (tower, "select_layer", 0, "vision_feature_layer = 0 is not the output"),
    ):
        before = getattr(owner, name)
        setattr(owner, name, value)
        with pytest.raises(ValueError, match=message):
            prune(model, Scope(), 3)
        setattr(owner, name, before)
    tower.s2_scales = [1, 2]
    with pytest.raises(TypeError, match="looks at an image in several sizes"):
        prune(model, Scope(), 3)
    del tower.s2_scales, tower.vision_tower
    with pytest.raises(TypeError, match=r"call model.get_vision_tower\(\).load_model\(\) first"):
        prune(model, Scope(), 3)


def test_calls_that_are_refused(build):
    model = build(mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres")
    x, _ = inputs([[3, SHAPES[0], 4]], form="list4")
    with prune(model, Scope(), 3) as pruning:
        with pytest.raises(ValueError, match="image_sizes is missing"):
            model(**(x | {"image_sizes": None}))
        with pytest.raises(ValueError, match="image 0 has 5 crops, but its size 200 x 60 makes 4"):
            model(**(x | {"image_sizes": [(200, 60)]}))
        for aspect in ("pad", "anyres_max_9"):
            model.config.image_aspect_ratio = aspect
            with pytest.raises(ValueError, match=f"takes those of image_aspect_ratio = 'anyres', not '{aspect}'"):
                model(**x)
        with pytest.raises(NotImplementedError, match="measure"):
            pruning.measure()


def test_tiles_need_full_grids(build):
    model = build(mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres", mm_vision_select_feature="cls_patch")
    x, _ = inputs([[3, SHAPES[0], 4]], form="list4")
    with prune(model, Scope(), 3), pytest.raises(ValueError, match="set mm_vision_select_feature = 'patch'"):
        model(**x)


# ------------------------------------------------------------------------------------------------------------ the fork


class Fork(StandIn):
    """LLaVA-NeXT's classes say of each image what it is."""

    def prepare_inputs_labels_for_multimodal(
        self, input_ids, position_ids, attention_mask, past_key_values, labels, images, modalities=("image",), image_sizes=None
    ):
        return super().prepare_inputs_labels_for_multimodal(
            input_ids, position_ids, attention_mask, past_key_values, labels, images, image_sizes
        )

    def forward(self, input_ids=None, attention_mask=None, images=None, image_sizes=None, modalities=("image",), **kwargs):
        if kwargs.get("inputs_embeds") is not None or images is None:
            return super().forward(input_ids, attention_mask, **kwargs)
        _, _, attention_mask, _, embeds, _ = self.prepare_inputs_labels_for_multimodal(
            input_ids, None, attention_mask, None, None, images, modalities, image_sizes
        )
        return super().forward(attention_mask=attention_mask, inputs_embeds=embeds, **kwargs)


def test_modalities_of_the_fork():
    model = stand_in(mm_patch_merge_type="spatial_unpad", image_aspect_ratio="anyres")
    model.__class__ = Fork
    check(model, MIXED, Scope(), 11, form="list4")
    x, _ = inputs([[3, IMG, 4]], form="list4")
    with prune(model, Scope(), 3), pytest.raises(ValueError, match="modalities holds 'video'"):
        model(**x, modalities=["video"])


def test_a_fork_that_encodes_in_another_way_is_refused():
    class Other(StandIn):
        def prepare_inputs_labels_for_multimodal(self, input_ids, *arguments, images=None, **more):
            return None, None, None, None, self.get_model().embed_tokens(input_ids.clamp_min(0)), None

    model = stand_in()
    model.__class__ = Other
    with prune(model, Scope(), 3), pytest.raises(RuntimeError, match="did not ask encode_images for the images"):
        model.prepare_inputs_labels_for_multimodal(input_ids=torch.tensor([[3, IMAGE, 4]]), images=draw(1, 0))


@pytest.mark.parametrize("method", [Scope(), HoloV(), FoPru()], ids=lambda m: type(m).__name__)
def test_a_tower_without_class_token(method):
    model = stand_in(tower="siglip")
    check(model, PROMPTS, method, 6)
    x, images = inputs([[5, IMG]])
    expected = attention(model, images[0], 2)[0].mean(0)
    with prune(model, HoloV(), 4) as pruning:
        model(**x)
    torch.testing.assert_close(pruning.last.scores[0], expected)


@pytest.mark.skipif(not INSTALLED, reason="the original code base (llava-torch) is not installed: make test-original")
def test_the_real_classes_are_tested_too(checkpoint):
    """One skip for all the tests that run on them where they are installed."""
    model = real(checkpoint)
    assert type(model).__module__.startswith("llava.") and recognises(model)


def test_the_code_base_is_not_imported():
    imported = "llava" in sys.modules
    model = stand_in()
    with prune(model, Scope(), 3):
        model(**inputs(PROMPTS)[0])
    assert ("llava" in sys.modules) == imported


def test_a_language_model_alone_is_not_taken_for_one():
    class Bare(StandIn):
        pass

    model = Bare(LlamaConfig(**options("")))
    del model.model.mm_projector
    with pytest.raises((TypeError, ImportError), match=r"vt.prune (does not support Bare|supports transformers)"):
        prune(model, Scope(), 3)
