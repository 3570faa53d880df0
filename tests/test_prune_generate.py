"""``generate`` on a pruned model against ``generate`` of the unpruned one on the prompt built by hand."""

import threading

import pytest
import torch

pytest.importorskip("transformers")

import models
import transformers
from models import END, PAD
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer

from vtkernels.integrations import prune
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Scope, TopAttention

ONE = [3, 4, "image", 5, 6]
TWO = [7, "image", "image", 8, "image", 9]
TEXT = [10, 11, 12]
NEW = 6
VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])


@pytest.fixture(scope="module")
def model():
    model = models.llava()
    # an early end in one row is tested where it is wanted
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture
def greedy():
    return {"max_new_tokens": NEW, "do_sample": False}


def by_hand(model, prompts, pixel_values, kept, **options):
    """What the unpruned model adds to the left-padded embeddings with only the ``kept`` rows of each image."""
    with torch.no_grad():
        features = iter(models.projected(model, pixel_values))
        kept = iter(kept)
        rows = [models.embedded(model, p, [next(features)[next(kept)] for _ in range(p.count("image"))])[0] for p in prompts]
    width = max(map(len, rows))
    pad = model.get_input_embeddings().weight[PAD]
    embeds = torch.stack([torch.cat([pad.expand(width - len(r), -1), r]) for r in rows]).detach()
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return model.generate(inputs_embeds=embeds, attention_mask=mask, **options)


def check(model, prompts, *, method=None, rows=1, **options):
    """Prunes, generates both ways, compares; returns the pruned result and the record."""
    x = models.inputs(model, prompts)
    with prune(model, method or Scope(), keep=5, positions="contiguous") as pruning:
        torch.manual_seed(5)
        out = model.generate(**x, **options)
    torch.manual_seed(5)
    expected = by_hand(model, prompts, x["pixel_values"], pruning.last.indices, **options)
    sequences = out if isinstance(out, torch.Tensor) else out.sequences
    expected = expected if isinstance(expected, torch.Tensor) else expected.sequences
    n = x["input_ids"].shape[1]
    assert sequences[:, :n].equal(x["input_ids"].repeat_interleave(rows, 0)), "the original prompt comes back"
    assert sequences[:, n:].equal(expected)
    return out, pruning.last


@pytest.mark.parametrize(
    "method", [Scope(), FoPru(), GPrune(), HoloV(), PAR(route="drop"), TopAttention()], ids=lambda m: type(m).__name__
)
@pytest.mark.parametrize(
    "prompts", [[ONE], [TWO], [ONE, ONE], [ONE, TWO, TEXT]], ids=["one image", "three images", "batch", "mixed batch"]
)
def test_greedy(model, greedy, method, prompts):
    _, last = check(model, prompts, method=method, **greedy)
    assert len(last.indices) == sum(p.count("image") for p in prompts)


def test_pruning_changes_the_answer(model, greedy):
    """Otherwise the comparisons above would hold for a pruning that does nothing."""
    x = models.inputs(model, [TWO])
    expected = model.generate(**x, **greedy)
    with prune(model, Scope(), keep=2):
        assert not model.generate(**x, **greedy).equal(expected)


def test_all_tokens_kept(model, greedy):
    x = models.inputs(model, [ONE, TWO, TEXT])
    expected = model.generate(**x, **greedy)
    with prune(model, Scope(), keep=1.0):
        assert model.generate(**x, **greedy).equal(expected)


def test_sampling_and_several_sequences(model):
    check(model, [ONE, TWO], do_sample=True, max_new_tokens=NEW)
    _, last = check(model, [ONE, ["image", 8, 9]], do_sample=True, max_new_tokens=NEW, num_return_sequences=3, rows=3)
    assert len(last.indices) == 2


def test_beams(model, greedy):
    check(model, [ONE], num_beams=3, **greedy)
    _, last = check(model, [ONE, ONE, ONE], num_beams=3, **greedy)
    assert len(last.indices) == len(last.scores) == len(last.tokens_before) == 3  # not one per beam
    check(model, [ONE, ONE], num_beams=3, num_return_sequences=2, rows=2, **greedy)
    check(model, [ONE, ONE], method=FoPru(), num_beams=3, **greedy)
    check(model, [ONE, ONE], method=GPrune(), num_beams=3, **greedy)


def test_beams_with_several_images_in_a_prompt(model, greedy):
    prompts = [ONE, TWO, TEXT]
    x = models.inputs(model, prompts)
    stock = model.generate(**x, num_beams=3, **greedy)[:, -NEW:]
    if not stock.equal(by_hand(model, prompts, x["pixel_values"], [slice(None)] * 4, num_beams=3, **greedy)):
        pytest.skip("this transformers hands beams the wrong images, with or without pruning")
    check(model, prompts, num_beams=3, **greedy)


def test_return_dict(model, greedy):
    out, _ = check(model, [ONE, TWO], return_dict_in_generate=True, output_scores=True, output_logits=True, **greedy)
    assert len(out.scores) == len(out.logits) == NEW
    assert out["sequences"] is out.sequences
    assert out.past_key_values.get_seq_length() == 3 + 3 * 5 + NEW - 1  # TWO: 3 words, 3 images of 5 tokens
    check(model, [ONE], num_beams=2, return_dict_in_generate=True, **greedy)


def test_without_a_cache(model, greedy):
    x = models.inputs(model, [ONE, TWO])
    with prune(model, Scope(), keep=5) as pruning:
        expected = model.generate(**x, **greedy)
        last = pruning.last
        assert model.generate(**x, use_cache=False, **greedy).equal(expected)
        assert len(pruning.last.indices) == 4 and pruning.last.indices[3].equal(last.indices[3])


def test_static_cache(model, greedy):
    x = models.inputs(model, [ONE, TWO])
    with prune(model, Scope(), keep=5):
        expected = model.generate(**x, **greedy)
        assert model.generate(**x, cache_implementation="static", **greedy).equal(expected)


def test_compiled_decoding(model, greedy, monkeypatch):
    """What transformers does with a static cache on a GPU: a decoding step is one graph, as without pruning."""
    x = models.inputs(model, [ONE, TWO])
    compiled = transformers.generation.CompileConfig(fullgraph=True, mode=None, backend="eager")
    torch._dynamo.reset()
    with prune(model, Scope(), keep=5):
        expected = model.generate(**x, **greedy)
        monkeypatch.setattr(model, "_valid_auto_compile_criteria", lambda *args, **kwargs: True)
        got = model.generate(**x, cache_implementation="static", compile_config=compiled, **greedy)
    monkeypatch.undo()
    assert "_compiled_call" in vars(model)
    del model._compiled_call
    torch._dynamo.reset()
    assert got.equal(expected)


def test_chunked_prefill(model, greedy):
    x = models.inputs(model, [TWO])
    stock = model.generate(**x, **greedy)
    try:
        in_chunks = model.generate(**x, prefill_chunk_size=4, **greedy)
    except (TypeError, ValueError):
        in_chunks = None
    if in_chunks is None or not in_chunks.equal(stock):
        pytest.skip("this transformers cannot prefill a prompt with images in chunks, with or without pruning")
    with prune(model, Scope(), keep=5):
        assert model.generate(**x, prefill_chunk_size=4, **greedy).equal(model.generate(**x, **greedy))


def test_a_batch_is_its_rows_one_by_one(model, greedy):
    prompts = [ONE, TEXT, [*range(13, 40), "image"], TWO]
    x = models.inputs(model, prompts)
    images = iter(x["pixel_values"])
    with prune(model, Scope(), keep=5):
        together = model.generate(**x, **greedy)[:, -NEW:]
        for row, prompt in zip(together, prompts, strict=True):
            single = models.inputs(model, [prompt])
            if "image" in prompt:
                single["pixel_values"] = torch.stack([next(images) for _ in range(prompt.count("image"))])
            assert model.generate(**single, **greedy)[0, -NEW:].equal(row)


def test_rows_end_one_by_one(model):
    x = models.inputs(model, [ONE, TWO])
    options = {"max_new_tokens": 12, "do_sample": False}
    with prune(model, Scope(), keep=5):
        end = int(model.generate(**x, **options)[0, x["input_ids"].shape[1] + 2])
    out, _ = check(model, [ONE, TWO], eos_token_id=end, pad_token_id=PAD, **options)
    assert (out[0] == end).any() and out[0, -1] in (PAD, end)


@pytest.mark.parametrize("prompts", [[ONE, ONE], [ONE, TWO, TEXT]], ids=["equal rows", "unequal rows"])
def test_without_an_attention_mask(model, greedy, prompts):
    """``generate`` infers padding from ids."""
    x = models.inputs(model, prompts)
    with prune(model, Scope(), keep=5):
        expected = model.generate(**x, **greedy)
        del x["attention_mask"]
        assert model.generate(**x, **greedy).equal(expected)
        ids = x.pop("input_ids")
        assert model.generate(ids, **x, **greedy).equal(expected)
        assert model.generate(inputs=ids, **x, **greedy).equal(expected)


def test_without_an_attention_mask_and_without_a_padding_id(model, greedy):
    """Nothing to infer padding from: rows that become unequal still do not see what was put in."""
    x = models.inputs(model, [ONE, [*range(20, 40)]], mask=False)
    assert x["input_ids"].shape == (2, 20)
    with prune(model, Scope(), keep=5):
        together = model.generate(**x, pad_token_id=END, eos_token_id=END, **greedy)[:, -NEW:]
        alone = model.generate(x["input_ids"][1:], pad_token_id=END, eos_token_id=END, **greedy)[:, -NEW:]
    assert together[1].equal(alone[0])


def test_text_alone_is_stock(model, greedy):
    x = models.inputs(model, [TEXT, [10]])
    embeds = model.get_input_embeddings()(x["input_ids"]).detach()
    expected = model.generate(**x, **greedy)
    by_embeds = model.generate(inputs_embeds=embeds, attention_mask=x["attention_mask"], **greedy)
    stray = torch.tensor([[3, models.IMAGE, 4]])  # a placeholder without an image is a word like any other
    by_stray = model.generate(stray, **greedy)
    with prune(model, Scope(), keep=5) as pruning:
        model.generate(**models.inputs(model, [ONE]), **greedy)
        assert len(pruning.last.indices) == 1
        assert model.generate(**x, **greedy).equal(expected)
        assert pruning.last.indices == []
        assert model.generate(inputs_embeds=embeds, attention_mask=x["attention_mask"], **greedy).equal(by_embeds)
        assert model.generate(stray, **greedy).equal(by_stray)
        assert model.generate(**x, use_cache=False, **greedy).equal(expected)


def test_images_with_embeddings_are_refused(model, greedy):
    with prune(model, Scope(), keep=5), pytest.raises(ValueError, match="give input_ids, not inputs_embeds, with images"):
        model.generate(inputs_embeds=torch.zeros(1, 20, 32), pixel_values=models.pixels(model, 1), **greedy)


class TestLengths:
    """The caller's numbers are about the original prompt, 20 tokens (4 words and 16 placeholders, 5 of them kept)."""

    @pytest.fixture
    def x(self, model):
        return models.inputs(model, [ONE])

    def new_tokens(self, model, x, **options):
        with prune(model, Scope(), keep=5):
            out = model.generate(**x, do_sample=False, **options)
        assert out[0, :20].equal(x["input_ids"][0])
        return out.shape[1] - 20

    def test_max_length(self, model, x):
        assert self.new_tokens(model, x, max_length=27) == 7

    def test_max_length_in_a_config(self, model, x):
        config = GenerationConfig(max_length=27, pad_token_id=PAD)
        assert self.new_tokens(model, x, generation_config=config) == 7
        assert config.max_length == 27

    def test_max_length_that_becomes_the_default_of_transformers_4(self, model, x):
        """27 - 11 = 16 and 31 - 11 = 20: the 20 must not be taken for "20 new tokens"."""
        assert self.new_tokens(model, x, generation_config=GenerationConfig(max_length=31, pad_token_id=PAD)) == 11

    def test_max_length_in_the_models_config(self, model, x, monkeypatch):
        monkeypatch.setattr(model.generation_config, "max_length", 26)
        assert self.new_tokens(model, x) == 6
        assert self.new_tokens(model, x, max_new_tokens=3) == 3
        assert model.generation_config.max_length == 26

    def test_default_length(self, model, x):
        expected = model.generate(**x, do_sample=False).shape[1] - 20
        assert self.new_tokens(model, x) == expected == 20

    @pytest.mark.parametrize("max_length", [20, 12, 9])
    def test_no_room(self, model, x, max_length):
        with pytest.raises(ValueError, match=f"max_length = {max_length} leaves no room behind a prompt of 20 tokens"):
            self.new_tokens(model, x, max_length=max_length)

    def test_min_length(self, model, x):
        end = int(self.first(model, x))
        assert self.new_tokens(model, x, max_new_tokens=8, eos_token_id=end) == 1
        assert self.new_tokens(model, x, max_new_tokens=8, eos_token_id=end, min_length=24) >= 4
        assert self.new_tokens(model, x, max_new_tokens=8, eos_token_id=end, min_length=20) == 1
        assert self.new_tokens(model, x, max_new_tokens=8, eos_token_id=end, min_new_tokens=4) >= 4

    def first(self, model, x):
        with prune(model, Scope(), keep=5):
            return model.generate(**x, do_sample=False, max_new_tokens=1)[0, -1]


class Streamer:
    def __init__(self):
        self.got, self.ended = [], 0

    def put(self, value):
        self.got.append(value)

    def end(self):
        self.ended += 1


def test_streamer(model, greedy):
    x = models.inputs(model, [ONE])
    streamer = Streamer()
    with prune(model, Scope(), keep=5):
        out = model.generate(**x, streamer=streamer, **greedy)
    assert streamer.got[0].equal(x["input_ids"]) and streamer.ended == 1
    assert torch.cat([v.flatten() for v in streamer.got]).equal(out[0])


def test_text_streamer_in_a_thread(model, greedy):
    class Tokenizer:
        def decode(self, ids, **_):
            return "".join(f"{int(i)} " for i in ids)

    x = models.inputs(model, [ONE])
    with prune(model, Scope(), keep=5):
        out = model.generate(**x, **greedy)
        streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True, timeout=30)
        thread = threading.Thread(target=model.generate, kwargs={**x, **greedy, "streamer": streamer})
        thread.start()
        words = "".join(streamer).split()
        thread.join()
    assert [int(w) for w in words] == out[0, -NEW:].tolist()


def test_threads_do_not_mix(model, greedy):
    if VERSION < (5, 12):
        pytest.skip("older transformers replace forwards while they run: calls side by side mix, with or without pruning")
    prompts = [[ONE], [TWO], [TEXT, TWO], [ONE, ONE]]
    batches = [models.inputs(model, p, seed=i) for i, p in enumerate(prompts)]
    with prune(model, Scope(), keep=5):
        expected = [model.generate(**x, **greedy) for x in batches]
        got = [None] * len(batches)

        def run(i):
            for _ in range(3):
                got[i] = model.generate(**batches[i], **greedy)
                assert got[i].equal(expected[i])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(a is not None and a.equal(b) for a, b in zip(got, expected, strict=True))


def test_a_conversation_on_one_cache(model, greedy):
    """The returned ids are the original ones, so a second turn gives them back with the first turn's cache."""
    x = models.inputs(model, [ONE])
    with prune(model, Scope(), keep=5) as pruning:
        first = model.generate(**x, return_dict_in_generate=True, **greedy)
        indices = pruning.last.indices
        ids = torch.cat([first.sequences, torch.tensor([[30, 31]])], dim=1)
        second = model.generate(input_ids=ids, past_key_values=first.past_key_values, **greedy)
    assert second[:, : ids.shape[1]].equal(ids)
    prompt = [*ONE, *first.sequences[0, -NEW:].tolist(), 30, 31]
    assert second[:, ids.shape[1] :].equal(by_hand(model, [prompt], x["pixel_values"], indices, **greedy))


def test_a_conversation_with_an_image_in_every_turn(model, greedy):
    if VERSION < (5, 0):
        pytest.skip("transformers 4 drops images that come with a cache, with or without pruning")
    x = models.inputs(model, [[*ONE, *TEXT, "image", 14]])
    turn = models.inputs(model, [ONE])["input_ids"]
    with prune(model, Scope(), keep=5) as pruning:
        first = model.generate(turn, pixel_values=x["pixel_values"][:1], return_dict_in_generate=True, **greedy)
        indices = pruning.last.indices
        rest = models.inputs(model, [[*TEXT, "image", 14]])["input_ids"]
        ids = torch.cat([first.sequences, rest], dim=1)
        second = model.generate(ids, pixel_values=x["pixel_values"][1:], past_key_values=first.past_key_values, **greedy)
        indices = indices + pruning.last.indices
    prompt = [*ONE, *first.sequences[0, -NEW:].tolist(), *TEXT, "image", 14]
    assert second[:, ids.shape[1] :].equal(by_hand(model, [prompt], x["pixel_values"], indices, **greedy))


def test_an_empty_cache_of_the_callers(model, greedy):
    x = models.inputs(model, [ONE])
    with prune(model, Scope(), keep=5):
        expected = model.generate(**x, **greedy)
        cache = DynamicCache(config=model.config.text_config)
        assert model.generate(**x, past_key_values=cache, **greedy).equal(expected)
        assert cache.get_seq_length() == 9 + NEW - 1


def test_processors_and_criteria_see_the_short_prompt(model, greedy):
    seen = []

    def processor(ids, scores):
        seen.append(ids.shape[1])
        return scores

    x = models.inputs(model, [ONE])
    with prune(model, Scope(), keep=5):
        model.generate(**x, logits_processor=[processor], **greedy)
    assert seen == list(range(9, 9 + NEW))


def test_images_encoded_beforehand(model, greedy):
    if VERSION < (5, 0):
        pytest.skip("transformers 4 takes no encoded images")
    x = models.inputs(model, [ONE, TWO])
    with prune(model, Scope(), keep=5):
        expected, logits = model.generate(**x, **greedy), model(**x).logits
        encoded = lambda: {"image": model.get_image_features(pixel_values=x["pixel_values"])}  # noqa: E731
        rest = {k: v for k, v in x.items() if k != "pixel_values"}
        try:
            got = model.generate(**rest, mm_encoder_outputs=encoded(), **greedy)
        except (TypeError, ValueError):
            pytest.skip("this transformers takes no encoded images")
        assert got.equal(expected)
        assert model(**rest, mm_encoder_outputs=encoded()).logits.equal(logits)


def test_an_error_inside_leaves_everything_usable(model, greedy):
    class Stop(Exception):
        pass

    def processor(ids, scores):
        raise Stop

    x = models.inputs(model, [ONE])
    with prune(model, Scope(), keep=5):
        expected, logits = model.generate(**x, **greedy), model(**x).logits
        with pytest.raises(Stop):
            model.generate(**x, logits_processor=[processor], **greedy)
        with pytest.raises(ValueError, match="input_ids does not match the images"):
            model.generate(**x | {"pixel_values": models.pixels(model, 2)}, **greedy)
        assert model.generate(**x, **greedy).equal(expected)
        assert model(**x).logits.equal(logits)  # a forward outside generate shortens its prompt itself
