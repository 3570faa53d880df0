"""PAR on a model: the prompt of each row, merging, text encoders, and the constructed cases of its definition."""

import dataclasses

import pytest
import torch

pytest.importorskip("transformers")

import models
import transformers
from models import END, IMAGE, PAD

import vtkernels as vt
from vtkernels.integrations import prune
from vtkernels.methods import PAR, Context, HoloV, Selection

ONE = [3, 4, "image", 5, 6]
TWO = [7, "image", "image", 8, "image", 9]
TEXT = [10, 11, 12]
LONG = ["image", *range(13, 50)]
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model():
    model = models.llava()
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


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


def texts(prompts):
    """The text around each image of every prompt, in the order of the images."""
    return [[t for t in p if t != "image"] for p in prompts for t in p if t == "image"]


# ------------------------------------------------------------------------------------------------ what a method is given


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mask", [True, False])
def test_each_image_is_given_the_text_of_its_row(model, side, mask):
    prompts = [ONE, TWO, TEXT, LONG]
    x = models.inputs(model, prompts, side=side, mask=mask)
    spy = Spy()
    for keep in (5, 1.0):
        with prune(model, spy, keep=keep):
            model(**x)
    (context, again) = spy.seen
    assert spy.prompts() == texts(prompts) * 2
    assert context.prompt_ids.equal(again.prompt_ids)
    table = model.get_input_embeddings()
    assert context.prompt.equal(table(context.prompt_ids))
    assert context.prompt.shape == (5, 37, 32) and context.prompt_lengths.tolist() == [4, 3, 3, 3, 37]
    assert (context.prompt_ids[0, 4:] == PAD).all()


def test_special_ids_are_no_text(model):
    """Padding, start (2) and end; or what the method names."""
    prompt = [2, 3, "image", 4, END, 5]
    x = models.inputs(model, [prompt, ONE])
    for special, want in ((None, [3, 4, 5]), ((), [2, 3, 4, END, 5]), ({3, 5}, [2, 4, END])):
        spy = Spy(special)
        with prune(model, spy, keep=5):
            model(**x)
            model.generate(**x, max_new_tokens=1)
        assert spy.prompts()[::2] == [want] * 2


def test_masked_tokens_are_no_text(model):
    x = models.inputs(model, [ONE])
    x["attention_mask"][0, 1] = 0
    spy = Spy()
    with prune(model, spy, keep=5):
        model(**x)
    assert spy.prompts() == [[3, 5, 6]]


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}, {"use_cache": False}],
    ids=["greedy", "beams", "sequences", "no cache"],
)
def test_generate_gives_the_prompt_of_each_image(model, options):
    prompts = [ONE, [*LONG, 7], ["image", 70]]
    x = models.inputs(model, prompts)
    spy = Spy()
    with prune(model, spy, keep=5) as pruning:
        model.generate(**x, **NEW | options)
    seen = spy.prompts()
    repeats = len(seen) // 3  # transformers 4 encodes once for every beam; without a cache once for every new token
    assert set(map(tuple, seen)) == set(map(tuple, texts(prompts)))
    assert repeats * 3 == len(seen) and len(pruning.last.indices) == 3


def test_a_second_image_behind_a_cache(model):
    x = models.inputs(model, [[*ONE, *TWO]])
    n = models.inputs(model, [ONE])["input_ids"].shape[1]
    spy = Spy()
    with prune(model, spy, keep=5):
        first = model(input_ids=x["input_ids"][:, :n], pixel_values=x["pixel_values"][:1], use_cache=True)
        model(
            input_ids=x["input_ids"][:, n:],
            pixel_values=x["pixel_values"][1:],
            attention_mask=torch.ones(1, 9 + x["input_ids"].shape[1] - n, dtype=torch.long),
            past_key_values=first.past_key_values,
        )
        assert spy.prompts() == [[3, 4, 5, 6]] + [[7, 8, 9]] * 3
        if VERSION < (5, 0):
            return  # its generate leaves out the images of a prompt whose start is in a cache
        spy.seen.clear()
        cache = model(input_ids=x["input_ids"][:, :n], pixel_values=x["pixel_values"][:1], use_cache=True).past_key_values
        model.generate(**x | {"pixel_values": x["pixel_values"][1:]}, past_key_values=cache, **NEW)
        assert spy.prompts() == [[3, 4, 5, 6]] + [[3, 4, 5, 6, 7, 8, 9]] * 3  # generate is given the whole prompt


# ------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("prompt", [["image"], [2, "image", END], ["image", "image"]])
def test_an_image_without_text_is_an_error_that_names_alternatives(model, prompt):
    x = models.inputs(model, [ONE, prompt])
    with prune(model, PAR(), keep=5) as pruning:
        expected = model(**models.inputs(model, [ONE])).logits
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=r"PAR needs the text of the prompt, but row 1 of input_ids .* vt.HoloV\(\)"):
                call(**x)
        assert model(**models.inputs(model, [ONE])).logits.equal(expected) and len(pruning.last.indices) == 1
    with prune(model, HoloV(), keep=5):
        model(**x)


def test_get_image_features_alone_has_no_prompt(model):
    x = models.inputs(model, [ONE])
    with prune(model, PAR(), keep=5):
        for _ in range(2):
            with pytest.raises(
                ValueError, match=r"PAR needs the prompt, which get_image_features does not see: .* vt.HoloV\(\)"
            ):
                model.get_image_features(pixel_values=x["pixel_values"])
            model(**x)  # what it was told is forgotten afterwards
        with pytest.raises(ValueError, match="does not match"):
            model(**x | {"pixel_values": models.pixels(model, 2)})
        with pytest.raises(ValueError, match="get_image_features does not see"):
            model.get_image_features(pixel_values=x["pixel_values"])
    assert models.projected(model, x["pixel_values"]).shape == (1, 16, 32)


def test_an_error_inside_forward_is_forgotten_too(model):
    x = models.inputs(model, [ONE])

    class Broken(Spy):
        def select(self, context, k):
            raise RuntimeError("broken")

    with prune(model, Broken(), keep=5):
        for call in (model, model.generate):
            with pytest.raises(RuntimeError, match="broken"):
                call(**x)
            with pytest.raises(ValueError, match="get_image_features does not see"):
                model.get_image_features(pixel_values=x["pixel_values"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 0}, r"threshold must be in \(0, 1\], got 0"),
        ({"threshold": 1.5}, r"threshold must be in \(0, 1\], got 1.5"),
        ({"pool": -0.1}, r"pool must be in \[0, 1\], got -0.1"),
        ({"reduce": "sum"}, "reduce must be 'max' or 'mean', got 'sum'"),
        ({"route": "average"}, "route must be 'merge' or 'drop', got 'average'"),
        ({"text_encoder": "clip"}, "text_encoder must be callable or None, got str"),
    ],
)
def test_par_refuses(fields, message):
    with pytest.raises(ValueError, match=f"PAR: {message}"):
        PAR(**fields)


def test_special_ids_are_kept_as_a_tuple():
    assert PAR(special_ids=[1, 2]).special_ids == (1, 2)
    assert hash(PAR(special_ids=[1])) == hash(PAR(special_ids=(1,)))


@pytest.mark.parametrize(
    ("fields", "error"),
    [({"crops": 0}, ValueError), ({"crops": 2.5}, TypeError), ({"variant": "published"}, ValueError)],
)
def test_holov_refuses(fields, error):
    with pytest.raises(error, match=f"HoloV: {next(iter(fields))} must be"):
        HoloV(**fields)


# ------------------------------------------------------------------------------------------------ pruning


def test_all_tokens_kept_merges_nothing(model):
    x = models.inputs(model, [ONE, TWO, TEXT])
    expected = model(**x).logits
    for route in ("merge", "drop"):
        with prune(model, PAR(route=route), keep=1.0):
            assert model(**x).logits.equal(expected)


def by_hand(model, prompt, pixel_values, method, k):
    """Logits of one prompt with one image, from ops on the unpruned model's own tokens and embeddings."""
    tokens = models.projected(model, pixel_values)
    words = model.get_input_embeddings()(torch.tensor([[t for t in prompt if t != "image"]]))
    relevance = vt.prompt_relevance(tokens, words, reduce=method.reduce)
    labels = vt.token_clusters(tokens, threshold=method.threshold)
    kept = vt.cluster_topk(labels, relevance, k, pool=method.pool)
    if method.route == "merge":
        rows = vt.merge_tokens(tokens, kept, vt.route_tokens(tokens, kept, labels))
    else:
        rows = vt.gather_tokens(tokens, kept)
    embeds = models.embedded(model, prompt, rows)
    return (
        model(inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long)).logits[0],
        kept[0],
        relevance[0],
    )


@pytest.mark.parametrize("method", [PAR(0.3), PAR(0.3, route="drop"), PAR(0.3, 0.25, "mean"), PAR(0.9, 1.0)], ids=str)
@pytest.mark.parametrize("k", [3, 9])
def test_a_prompt_is_the_one_built_by_hand(model, method, k):
    prompts = [ONE, ["image", 40, 41, 42], [*range(50, 70), "image", 3]]
    x = models.inputs(model, prompts)
    with prune(model, method, keep=k) as pruning:
        logits = model(**x).logits
    for row, prompt in enumerate(prompts):
        expected, kept, relevance = by_hand(model, prompt, x["pixel_values"][row : row + 1], method, k)
        assert pruning.last.indices[row].equal(kept)
        torch.testing.assert_close(pruning.last.scores[row], relevance)
        torch.testing.assert_close(logits[row, -len(expected) :], expected, atol=2e-5, rtol=1e-4)


def test_merging_changes_what_the_model_sees(model):
    x = models.inputs(model, [ONE])
    logits = []
    for route in ("merge", "drop"):
        with prune(model, PAR(0.1, 1.0, route=route), keep=3) as pruning:
            logits.append((model(**x).logits, pruning.last.indices[0]))
    assert logits[0][1].equal(logits[1][1])
    assert not torch.allclose(logits[0][0], logits[1][0], atol=1e-3)


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_the_class_token_is_neither_merged_nor_moved(strategy):
    model = models.llava(strategy=strategy)
    fixed = 1 if strategy == "full" else 0
    x = models.inputs(model, [ONE])
    before = models.projected(model, x["pixel_values"])

    class Mine(Spy):
        needs = frozenset({"projected"})

        def select(self, context, k):
            assert context.projected.shape[1] == 16
            return Selection(torch.tensor([[2, 7]]), None, torch.tensor([[0, 1] * 8]))

    seen = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with prune(model, Mine(), keep=2):
        model(**x)
    handle.remove()
    merged = vt.merge_tokens(before[:, fixed:], torch.tensor([[2, 7]]), torch.tensor([[0, 1] * 8]))
    torch.testing.assert_close(seen[0][0, 2 : 4 + fixed], torch.cat([before[:, :fixed], merged], 1)[0])


@pytest.mark.parametrize("method", [HoloV(), PAR(), PAR(route="drop")], ids=str)
def test_generate(model, method):
    prompts = [ONE, TWO, TEXT]
    x = models.inputs(model, prompts)
    with prune(model, method, keep=5) as pruning:
        out = model.generate(**x, **NEW)
        last = pruning.last
        for row, prompt in enumerate(prompts):
            single = models.inputs(model, [prompt])
            first = sum(p.count("image") for p in prompts[:row])
            if "image" in prompt:
                single["pixel_values"] = x["pixel_values"][first : first + prompt.count("image")]
            alone = model.generate(**single, **NEW)
            assert alone[0, -6:].equal(out[row, -6:])
            assert [i.tolist() for i in pruning.last.indices] == [
                i.tolist() for i in last.indices[first : first + prompt.count("image")]
            ]
    assert len(last.indices) == 4 and out[:, : x["input_ids"].shape[1]].equal(x["input_ids"])


def test_generate_gives_what_forward_gives(model):
    x = models.inputs(model, [ONE, LONG])
    with prune(model, PAR(), keep=5) as pruning:
        step = model(**x).logits[:, -1].argmax(-1)
        last = pruning.last
        out = model.generate(**x, **NEW)
    assert out[:, x["input_ids"].shape[1]].equal(step)
    assert all(a.equal(b) for a, b in zip(last.indices, pruning.last.indices, strict=True))


def test_holov_loses_tokens_as_published(model):
    """The published code gives zero vectors for them, and so does variant "released"."""
    x = models.inputs(model, [ONE])
    embeds = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    with prune(model, HoloV(crops=8, variant="released"), keep=12) as pruning:
        model(**x)
    handle.remove()
    indices = pruning.last.indices[0]
    lost = int((indices < 0).sum())
    assert 0 < lost < 12 and (indices[12 - lost :] == -1).all()
    assert (embeds[0][0, 14 - lost : 14] == 0).all() and (embeds[0][0, 2 : 14 - lost] != 0).any(1).all()


# ------------------------------------------------------------------------------------------------ the prompt matters


def test_two_prompts_on_one_image_keep_different_tokens(model):
    prompts = [["image", word] for word in range(10, 30)]
    kept = []
    for batch in ([p] for p in prompts), [prompts]:
        for some in batch:
            x = models.inputs(model, some)
            x["pixel_values"] = x["pixel_values"][:1].expand(len(some), -1, -1, -1)
            with prune(model, PAR(0.99, 0.1), keep=4) as pruning:
                model(**x)
            kept.append([i.tolist() for i in pruning.last.indices])
    alone, together = [k for (k,) in kept[:20]], kept[20]
    assert alone == together  # the same prompt keeps the same at every batch size
    assert len({tuple(k) for k in together}) > 5


def clustered(target, *, batch=1, n=30, d=16):
    """Three separated clusters by turns (token i in cluster i mod 3), and a prompt along one of them."""
    draw = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(d, d, generator=draw)).Q[:3]
    tokens = directions[torch.arange(n) % 3] + 0.03 * torch.randn(batch, n, d, generator=draw)
    prompt = directions[target] + 0.1 * torch.randn(batch, 2, d, generator=draw)
    ids = torch.full((batch, 2), 5)
    return Context(
        batch,
        n,
        torch.device("cpu"),
        projected=tokens,
        features=tokens,
        prompt=prompt,
        prompt_ids=ids,
        prompt_lengths=torch.full((batch,), 2),
    )


@pytest.mark.parametrize("target", [0, 1, 2])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_the_cluster_of_the_prompt_is_kept_first(target, reduce):
    for k in (1, 3, 10):
        selection = PAR(pool=0.3, reduce=reduce).select(clustered(target, batch=4), k)
        assert (selection.indices % 3 == target).all()
        routed = selection.assignment.where(torch.arange(30) % 3 == target, 0)
        assert (routed >= 0).all() and (selection.assignment[:, torch.arange(30) % 3 != target] == -1).all()
    selection = PAR(pool=0.3, reduce=reduce).select(clustered(target, batch=4), 11)
    assert ((selection.indices % 3 == target).sum(1) > 5).all()  # a second cluster had to be retrieved
    assert PAR(pool=0.3, route="drop").select(clustered(target), 5).assignment is None


class TestTextEncoder:
    def test_replaces_the_embeddings(self):
        context, seen = clustered(0), []

        def encoder(ids):
            seen.append(ids)
            return clustered(2).prompt.double()  # any floating dtype

        selection = PAR(pool=0.3, text_encoder=encoder).select(context, 5)
        assert (selection.indices % 3 == 2).all() and seen[0].equal(context.prompt_ids)

    def test_may_give_another_number_of_vectors(self):
        vectors = torch.cat([clustered(1).prompt, clustered(0).prompt, clustered(2).prompt], 1)
        for count, target in ((2, 1), (1, 1)):
            method = PAR(pool=0.3, text_encoder=lambda ids, n=count: (vectors, torch.tensor([n])))
            assert (method.select(clustered(2), 5).indices % 3 == target).all()

    def test_may_bring_a_projection_for_the_visual_side(self):
        class Encoder(torch.nn.Module):
            def forward(self, ids):
                return clustered(1).prompt[..., :8]

            def project(self, features):
                return features[..., :8]

        method = PAR(pool=0.3, text_encoder=Encoder())
        assert method.needs == {"projected", "prompt", "features"}
        context = dataclasses.replace(clustered(0), prompt=None)
        assert (method.select(context, 5).indices % 3 == 1).all()
        assert PAR(text_encoder=lambda ids: ids).needs == {"projected", "prompt"}

    def test_on_a_model(self, model):
        table = torch.nn.Embedding(96, 32)
        x = models.inputs(model, [ONE, TWO])
        with prune(model, PAR(text_encoder=table), keep=5) as pruning:
            model(**x)
        tokens = models.projected(model, x["pixel_values"])
        words = table(torch.tensor([[3, 4, 5, 6]] + [[7, 8, 9, 0]] * 3))
        relevance = vt.prompt_relevance(tokens, words, text_lengths=torch.tensor([4, 3, 3, 3]))
        torch.testing.assert_close(torch.stack(pruning.last.scores), relevance)
        assert (x["input_ids"] == IMAGE).any()
