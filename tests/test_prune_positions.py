"""Positions of a pruned prompt, contiguous and original, against full forwards with explicit positions."""

import copy
import threading

import pytest
import torch

pytest.importorskip("transformers")

import models
import transformers
from full_forward import FullForward, joined
from models import END, Image
from transformers import DynamicCache, StaticCache

from vtkernels.integrations import prune
from vtkernels.methods import GPrune, HoloV, Scope, Uniform

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
WIDE, TALL = Image(56, 168), Image(200, 60)
ONE = [3, 4, "image", 5, 6]
TWO = [7, WIDE, TALL, 8, "image", 9]
TEXT = [10, 11, 12]
NEW = 5
GREEDY = {"max_new_tokens": NEW, "do_sample": False}


@pytest.fixture(scope="module")
def families():
    made = {"llava": models.llava(), "next": models.llava_next()}
    for model in made.values():
        model.generation_config.eos_token_id = None
    return made


@pytest.fixture(params=["llava", "next"])
def model(request, families):
    return families[request.param]


@pytest.fixture(params=["contiguous", "original"])
def positions(request):
    return request.param


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def pruned(model, positions, *, method=None, keep=5):
    return prune(model, method or Scope(), keep, positions=positions, newlines="keep", padding="exclude")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=1e-4)


def end_of(logits, length, side="left"):
    """The part of a row that is not padding."""
    return logits[-length:] if side == "left" else logits[:length]


# ------------------------------------------------------------------------------------------------ forward


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
@pytest.mark.parametrize("cache", [None, True, "given"], ids=["no cache", "cache", "cache given"])
def test_forward(model, positions, mask, cache):
    x = models.inputs(model, [TWO], mask=mask)
    with pruned(model, positions) as pruning:
        more = {"past_key_values": DynamicCache()} if cache == "given" else {"use_cache": bool(cache)}
        logits = model(**x, **more).logits
    hand = FullForward(model, [TWO], x, pruning)
    close(logits[0], hand.logits())
    other = "contiguous" if positions == "original" else "original"
    wrong = FullForward(model, [TWO], x, pruning, positions=other).logits()
    assert (logits[0] - wrong).abs().max() > 1e-2, "the comparison would hold for the other positions too"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", [GPrune(), HoloV()], ids=lambda m: type(m).__name__)
def test_rows_with_different_offsets(model, positions, side, method):
    prompts = [ONE, TWO, TEXT, [*range(13, 50), "image"], [*range(20, 40)]]
    x = models.inputs(model, prompts, side=side)
    with pruned(model, positions, method=method) as pruning:
        logits = model(**x).logits
    hand = FullForward(model, prompts, x, pruning)
    assert logits.shape[1] == max(hand.lengths())
    for row, length in enumerate(hand.lengths()):
        close(end_of(logits[row], length, side), hand.logits(row))


def test_positions_of_the_callers(model):
    """Kept tokens have those that the caller gave to their columns; contiguous ones are closed up."""
    x = models.inputs(model, [TWO])
    width = x["input_ids"].shape[1]
    given = torch.arange(width)[None] * 2 + 3
    with pruned(model, "original") as pruning:
        logits = model(**x, position_ids=given).logits[0]
        without_a_mask = model(**x | {"attention_mask": None}, position_ids=given).logits[0]
    hand = FullForward(model, [TWO], x, pruning)
    close(logits, hand.logits(places=given[:, hand.rows[0][1][0]]))
    close(without_a_mask, logits)
    with pruned(model, "contiguous") as pruning:
        logits = model(**x, position_ids=torch.arange(width)[None] + 3).logits[0]
    places = torch.arange(3, 3 + len(logits))[None]
    close(logits, FullForward(model, [TWO], x, pruning).logits(places=places))


def test_packed_sequences(model):
    """Two prompts in one row, told apart by positions that start again; with gaps that is impossible, and said."""
    prompts = [ONE, [7, WIDE, 8]]
    x = models.inputs(model, [prompts[0] + prompts[1]], mask=False)
    first = models.inputs(model, prompts[:1])["input_ids"].shape[1]
    places = torch.cat([torch.arange(first), torch.arange(x["input_ids"].shape[1] - first)])[None]
    stock = model(**x, position_ids=places).logits[0]
    with pruned(model, "contiguous") as pruning:
        logits = model(**x, position_ids=places, use_cache=False).logits[0]
    assert len(logits) < len(stock)
    hand = FullForward(model, prompts, x, pruning)
    close(logits, torch.cat([hand.logits(), hand.logits(1)]))
    with pruned(model, "original"), pytest.raises(ValueError, match=r"position_ids start again inside a row: .*'contiguous'"):
        model(**x, position_ids=places, use_cache=False)


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
def test_decoding_by_hand(model, positions, mask):
    """A prefill, a chunk and two single steps make one full forward."""
    more = [20, 21, 22, 23, 24]
    x = models.inputs(model, [TWO], mask=mask)
    with pruned(model, positions) as pruning:
        out = model(**x, use_cache=True)
        logits, cache, last = [out.logits[0]], out.past_key_values, pruning.last
        for chunk in ([20, 21, 22], [23], [24]):
            seen = {"attention_mask": torch.ones(1, cache.get_seq_length() + len(chunk), dtype=torch.long)} if mask else {}
            logits.append(model(input_ids=torch.tensor([chunk]), past_key_values=cache, **seen).logits[0])
        assert pruning.last is last
    hand = FullForward(model, [TWO], x, pruning)
    close(torch.cat(logits), hand.logits(more=more))


@pytest.mark.parametrize("side", ["left", "right"])
def test_decoding_rows_with_different_offsets(model, positions, side):
    prompts, steps = [ONE, TWO, TEXT], [[20, 21, 22], [30, 31, 32]]
    x = models.inputs(model, prompts, side=side)
    with pruned(model, positions) as pruning:
        out = model(**x, use_cache=True)
    hand = FullForward(model, prompts, x, pruning)
    mask = torch.zeros(out.logits.shape[:2], dtype=torch.long)
    for row, length in zip(mask, hand.lengths(), strict=True):
        end_of(row, length, side).fill_(1)
    with pruned(model, positions):
        for step in steps:
            mask = torch.cat([mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
            # without gaps the cache says nothing of the padding between, with or without pruning
            own = positions == "contiguous" and side == "right"
            given = {"position_ids": mask.sum(1, keepdim=True) - 1} if own else {}
            out = model(torch.tensor(step)[:, None], attention_mask=mask, past_key_values=out.past_key_values, **given)
    for row in range(3):
        close(out.logits[row, -1], hand.logits(row, [step[row] for step in steps])[-1])


def test_positions_given_with_a_decoding_step_are_taken_as_they_are(model):
    x = models.inputs(model, [ONE])
    with pruned(model, "original") as pruning:
        out = model(**x, use_cache=True)
        width = out.logits.shape[1]
        mask = torch.ones(1, width + 1, dtype=torch.long)
        step = {"input_ids": torch.tensor([[20]]), "attention_mask": mask}
        logits = model(**step, position_ids=torch.tensor([[99]]), past_key_values=out.past_key_values).logits[0]
    hand = FullForward(model, [[*ONE, 20]], x, pruning)
    places = hand.rows[0][1].clone()
    places[0, -1] = 99
    close(logits[0], hand.logits(places=places)[-1])


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no mask"])
def test_images_behind_a_cache(model, positions, mask):
    """Three calls on one cache: images, text, images."""
    turns = [[[*ONE]], [TEXT], [TWO]]
    whole = [[*ONE, *TEXT, *TWO]]
    x, logits, records, cache, done = models.inputs(model, whole), [], [], DynamicCache(), 0
    with pruned(model, positions) as pruning:
        for turn in turns:
            own = models.inputs(model, turn)
            count = len(models.images_of(turn))
            for name in ("pixel_values", "image_sizes"):
                if name in own:
                    own[name] = x[name][done : done + count]
            done += count
            past = torch.ones(1, cache.get_seq_length(), dtype=torch.long)
            own["attention_mask"] = torch.cat([past, own["attention_mask"]], dim=1) if mask else None
            logits.append(model(**own, past_key_values=cache).logits[0])
            records += [pruning.last] if count else []
    close(torch.cat(logits), FullForward(model, whole, x, pruning, records=records).logits())


def test_a_cache_that_is_cropped(model, positions):
    """Back to an earlier turn, and on from there in another direction."""
    whole = [[*ONE, *TWO]]
    x, n = models.inputs(model, whole), len(models.images_of([ONE]))
    own, rest = models.inputs(model, [ONE]), models.inputs(model, [TWO], mask=False)
    for name in ("pixel_values", "image_sizes"):
        if name in x:
            own[name], rest[name] = x[name][:n], x[name][n:]
    cut = own | {"input_ids": torch.cat([own["input_ids"], torch.tensor([[20, 21]])], dim=1), "attention_mask": None}
    with pruned(model, positions) as pruning:
        first = model(**cut, use_cache=True)
        records, cache = [pruning.last], first.past_key_values
        length = cache.get_seq_length() - 2
        model(**rest, past_key_values=cache)
        crop(cache, length)
        text = model(torch.tensor([[30, 31]]), past_key_values=cache).logits[0]
        crop(cache, length)
        again = model(**rest, past_key_values=cache).logits[0]
        records.append(pruning.last)
    close(again, FullForward(model, whole, x, pruning, records=records).logits()[length:])
    close(text, FullForward(model, [ONE], own, pruning, records=records[:1]).logits(0, [30, 31])[-2:])
    with pruned(model, positions):  # generate is given what the cache still holds, and more
        crop(cache, length)
        said = torch.cat([own["input_ids"], torch.tensor([[40, 41]])], dim=1)
        answer = model.generate(said, past_key_values=cache, **GREEDY)[:, -NEW:]
    assert answer.equal(FullForward(model, [[*ONE, 40, 41]], own, pruning, records=records[:1]).greedy(NEW))


def crop(cache, length):
    """To ``length`` columns: newer transformers crop by the number of those to go."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def test_a_cache_whose_rows_were_taken_out(model):
    x = models.inputs(model, [ONE, ONE])
    with pruned(model, "original"):
        cache = model(**x, use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([1]))
        with pytest.raises(ValueError, match="filled with a pruned prompt of 2 rows and is continued with 1; keep its rows"):
            model(torch.tensor([[20]]), past_key_values=cache)


# ------------------------------------------------------------------------------------------------ generate


def generated(model, positions, prompts, *, rows=1, **options):
    """New tokens of a pruned generate, and the reference for the same images."""
    x = models.inputs(model, prompts)
    with pruned(model, positions) as pruning:
        torch.manual_seed(5)
        out = model.generate(**x, return_dict_in_generate=True, output_logits=True, **options)
    n = x["input_ids"].shape[1]
    assert out.sequences[:, :n].equal(x["input_ids"].repeat_interleave(rows, 0)), "the original prompt comes back"
    new, hand = out.sequences[:, n:], FullForward(model, prompts, x, pruning)
    if "num_beams" not in options:
        for row, answer in enumerate(new):
            for step, logits in enumerate(out.logits):
                close(logits[row], hand.logits(row // rows, answer[:step])[-1])
    torch.manual_seed(5)
    return new, hand


@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 3}],
    ids=["greedy", "no cache", "static cache", "prompt lookup"],
)
def test_generate(model, positions, options):
    alone = "prompt_lookup_num_tokens" in options  # which takes one row
    # a prompt that repeats itself, so that candidates are looked up and taken
    prompts = [[*TWO, *ONE[3:], *TEXT, *TEXT]] if alone else [ONE, TWO, TEXT]
    end = {"eos_token_id": END} if alone and VERSION < (5, 0) else {}  # without one, transformers 4 fails to look up
    got, hand = generated(model, positions, prompts, **GREEDY, **options, **end)
    expected = hand.greedy(NEW)
    assert (END not in expected or not end) and got.equal(expected)


def test_original_positions_matter_in_generate(model):
    x, answers = models.inputs(model, [TWO]), []
    for positions in ("contiguous", "original"):
        with pruned(model, positions):
            out = model.generate(**x, return_dict_in_generate=True, output_logits=True, **GREEDY)
            answers.append(torch.stack(out.logits))
    assert (answers[0] - answers[1]).abs().amax(dim=(1, 2)).min() > 1e-2, "in every step"


def test_beams(model, positions):
    got, hand = generated(model, positions, [ONE, ["image", 8, 9]], num_beams=3, **GREEDY)
    assert got.equal(hand.beams(NEW, 3))


def test_beams_with_several_images_in_a_prompt(model, positions):
    if VERSION < (5, 0):
        pytest.skip("transformers 4 hands beams the wrong images, with or without pruning")
    got, hand = generated(model, positions, [ONE, TWO, TEXT], num_beams=3, **GREEDY)
    assert got.equal(hand.beams(NEW, 3))


def test_sampling(model, positions):
    options = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW, "num_return_sequences": 2}
    got, hand = generated(model, positions, [ONE, ["image", 8, 9]], rows=2, **options)
    assert got.equal(hand.samples(NEW, 2))


def test_without_an_attention_mask(model, positions):
    x = models.inputs(model, [TWO], mask=False)
    with pruned(model, positions) as pruning:
        got = model.generate(**x, **GREEDY)[:, -NEW:]
    assert got.equal(FullForward(model, [TWO], x, pruning).greedy(NEW))


def test_positions_given_to_generate(model, positions):
    """Those of the whole prompt, as generate would count them itself, change nothing."""
    if VERSION < (5, 0) and positions == "contiguous":
        pytest.skip("transformers 4 repeats the last position in every step, with or without pruning")
    x = models.inputs(model, [ONE, TWO])
    places = (x["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with pruned(model, positions):
        assert model.generate(**x, position_ids=places, **GREEDY).equal(model.generate(**x, **GREEDY))


def test_masked_holes_count_as_generate_counts_them(model, positions):
    """A column inside the prompt that is masked: ``generate`` counts unmasked tokens."""
    prompt = [*TEXT, *ONE]
    x = models.inputs(model, [prompt])
    x["attention_mask"][0, 1] = 0
    with pruned(model, positions) as pruning:
        got = model.generate(**x, **GREEDY)[:, -NEW:]
    rest = [prompt[0], *prompt[2:]]
    assert got.equal(FullForward(model, [rest], x, pruning).greedy(NEW))


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_a_conversation(model, positions, images):
    """Three turns on one cache, each given everything that was said, as a chat does."""
    if images and VERSION < (5, 0):
        pytest.skip("transformers 4 drops images that come with a cache, with or without pruning")
    said, cache, records, pixels, ids = [], None, [], [], None
    turns = [ONE, [*TEXT, *(TWO if images else [20])], [21, *(["image"] if images else []), 22]]
    with pruned(model, positions) as pruning:
        for number, turn in enumerate(turns):
            own = models.inputs(model, [turn], mask=False, seed=number)
            ids = own.pop("input_ids") if ids is None else torch.cat([ids, own.pop("input_ids")], dim=1)
            out = model.generate(ids, past_key_values=cache, **own, return_dict_in_generate=True, **GREEDY)
            assert out.sequences[:, : ids.shape[1]].equal(ids)
            pixels.append(own)
            records.append(pruning.last)
            said.append((turn, out.sequences[0, ids.shape[1] :].tolist()))
            ids, cache = out.sequences, out.past_key_values
    for number in range(len(turns)):
        prompt = [word for turn, answer in said[:number] for word in (*turn, *answer)] + list(turns[number])
        x = joined_pixels(pixels[: number + 1])
        hand = FullForward(model, [prompt], x, pruning, records=records[: number + 1])
        assert hand.greedy(NEW)[0].tolist() == said[number][1]


def joined_pixels(calls):
    """The pixels of several calls in one."""
    found = {}
    for name in ("pixel_values", "image_sizes"):
        parts = [call[name] for call in calls if name in call]
        if parts and name == "pixel_values" and parts[0].dim() == 5:
            crops = max(part.shape[1] for part in parts)
            parts = [torch.nn.functional.pad(p, [0] * 7 + [crops - p.shape[1]]) for p in parts]
        if parts:
            found[name] = torch.cat(parts)
    return found


@pytest.mark.parametrize("images", [False, True], ids=["text", "images"])
def test_a_conversation_of_several_rows(model, positions, images):
    """Rows that become unequal behind the cache: one has an image in its second turn, one has two, one none."""
    if images and VERSION < (5, 0):
        pytest.skip("transformers 4 drops images that come with a cache, with or without pruning")
    turns = [[ONE, [*TEXT, WIDE], [5]], [[20, WIDE, 21], [22, "image", TALL], [23]] if images else [[20, 21], [22, 23], [24]]]
    x, y = models.inputs(model, turns[0]), models.inputs(model, turns[1], seed=1)
    with pruned(model, positions) as pruning:
        first = model.generate(**x, return_dict_in_generate=True, **GREEDY)
        records = [pruning.last]
        ids = torch.cat([first.sequences, y["input_ids"]], dim=1)
        mask = torch.cat([x["attention_mask"], torch.ones(3, NEW, dtype=torch.long), y["attention_mask"]], dim=1)
        more = {name: y[name] for name in ("pixel_values", "image_sizes") if name in y}
        out = model.generate(ids, attention_mask=mask, past_key_values=first.past_key_values, **more, **GREEDY)
        records.append(pruning.last)
    assert out[:, :-NEW].equal(ids)
    answers = first.sequences[:, -NEW:].tolist()
    whole = [[*said, *answer, *more] for said, answer, more in zip(turns[0], answers, turns[1], strict=True)]
    # the images of the two calls, in the order of the rows
    counts = [[len(models.images_of([prompt])) for prompt in turn] for turn in turns]
    order, starts = [], [0, sum(counts[0])]
    for row in range(3):
        for turn in range(2):
            order += range(starts[turn], starts[turn] + counts[turn][row])
            starts[turn] += counts[turn][row]
    pixels = {name: value[order] for name, value in joined_pixels([x, y]).items()}
    record = joined(records)
    record = type(record)(**{name: [entries[i] for i in order] for name, entries in vars(record).items()})
    hand = FullForward(model, whole, pixels, pruning, records=[record])
    assert out[:, -NEW:].equal(hand.greedy(NEW))


def test_only_the_new_tokens_of_a_turn(model, positions):
    """transformers 5 takes them with a mask over the cache too, which holds fewer tokens than were said."""
    if VERSION < (5, 0):
        pytest.skip("transformers 4 wants the whole conversation")
    x, y = models.inputs(model, [TWO]), models.inputs(model, [[20, WIDE, 21]], seed=1)
    turns = [y, {"input_ids": torch.tensor([[22, 23]])}]
    with pruned(model, positions) as pruning:
        out = model.generate(**x, return_dict_in_generate=True, **GREEDY)
        said, records, whole, cache = out.sequences[:, -1:], [pruning.last], [], out.past_key_values
        answers = [out.sequences[0, -NEW:].tolist()]
        for turn in turns:
            ids = torch.cat([said, turn["input_ids"]], dim=1)
            mask = torch.ones(1, cache.get_seq_length() + ids.shape[1], dtype=torch.long)
            more = {name: turn[name] for name in ("pixel_values", "image_sizes") if name in turn}
            out = model.generate(
                ids, attention_mask=mask, past_key_values=cache, return_dict_in_generate=True, **more, **GREEDY
            )
            assert out.sequences[:, :-NEW].equal(ids)
            said, answers = out.sequences[:, -1:], [*answers, out.sequences[0, -NEW:].tolist()]
            records += [pruning.last] if more else []
    whole = [[*TWO, *answers[0], 20, WIDE, 21, *answers[1], 22, 23]]
    hand = FullForward(model, whole, joined_pixels([x, y]), pruning, records=records)
    assert hand.greedy(NEW)[0].tolist() == answers[2]


def test_what_does_not_fit_a_cache_is_said(model):
    x = models.inputs(model, [ONE])
    width = x["input_ids"].shape[1]
    with pruned(model, "contiguous"):
        out = model.generate(**x, return_dict_in_generate=True, **GREEDY)
        cache, held = out.past_key_values, out.past_key_values.get_seq_length()
        y = models.inputs(model, [[20, "image", 21]], mask=False)
        wide = torch.ones(1, width + NEW - 1 + y["input_ids"].shape[1], dtype=torch.long)
        message = f"attention_mask has {width + NEW - 1} columns in front of input_ids, but the cache holds {held}: visual"
        with pytest.raises(ValueError, match=message):
            model(**y, attention_mask=wide, past_key_values=cache)
        message = rf"inputs has 3 tokens, but the cache holds a prompt of {width + NEW - 1}, .*give the whole conversation"
        with pytest.raises(ValueError, match=message):
            model.generate(torch.tensor([[20, 21, 22]]), past_key_values=cache, **GREEDY)


def test_a_cache_that_was_filled_without_pruning(model, positions):
    """Its visual tokens are all there, and stay."""
    x = models.inputs(model, [TWO])
    first = model.generate(**x, return_dict_in_generate=True, **GREEDY)
    ids = torch.cat([first.sequences, torch.tensor([[20, 21]])], dim=1)
    twin = copy.deepcopy(first.past_key_values)
    expected = model.generate(ids, past_key_values=twin, **GREEDY)
    with pruned(model, positions):
        assert model.generate(ids, past_key_values=first.past_key_values, **GREEDY).equal(expected)


@pytest.mark.parametrize("prompt", [[3, 4, "image"], [3, "image", 4]], ids=["image at the end", "text at the end"])
def test_tokens_follow_the_whole_prompt(families, prompt):
    """What is cut at the very end leaves its gap, too: generated tokens have the positions that they had unpruned."""
    model, seen = families["llava"], []
    x = models.inputs(model, [prompt])
    with pruned(model, "original"):
        handle = model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["position_ids"].flatten().tolist()), with_kwargs=True
        )
        model.generate(**x, **GREEDY)
    handle.remove()
    width = x["input_ids"].shape[1]
    assert seen[1:] == [[width + i] for i in range(NEW - 1)]
    assert len(seen[0]) == width - 11 and seen[0][0] == 0 and seen[0][-1] < width


def test_a_static_cache_that_is_used_again(model, positions):
    """transformers keeps it on the model, resets it and fills it with another prompt; a text alone, too."""
    batches, answers = [[TWO, ONE], [ONE, TWO], [TEXT, [5]], [[8, "image"], ["image", 8, 9]]], []
    with pruned(model, positions) as pruning:
        for prompts in batches:
            x = models.inputs(model, prompts)
            length = x["input_ids"].shape[1] + NEW
            out = model.generate(**x, cache_implementation="static", max_length=length, do_sample=False)
            answers.append((prompts, x, out[:, -NEW:], pruning.last))
    for prompts, x, got, record in answers:
        assert got.equal(FullForward(model, prompts, x, pruning, records=[record]).greedy(NEW))
    expected = model.generate(**x, **GREEDY)
    assert model.generate(**x, cache_implementation="static", **GREEDY).equal(expected), "after the pruning is gone"


def test_compiled_decoding(families, monkeypatch):
    """What transformers does with a static cache on a GPU: a decoding step is one graph, with gaps in the cache, too."""
    model = families["llava"]
    x = models.inputs(model, [ONE, TWO])
    compiled = transformers.generation.CompileConfig(fullgraph=True, mode=None, backend="eager")
    torch._dynamo.reset()
    monkeypatch.setattr(model, "_valid_auto_compile_criteria", lambda *args, **kwargs: True)
    with pruned(model, "original") as pruning:
        got = model.generate(**x, cache_implementation="static", compile_config=compiled, **GREEDY)[:, -NEW:]
    monkeypatch.undo()
    assert "_compiled_call" in vars(model)
    del model._compiled_call
    torch._dynamo.reset()
    assert got.equal(FullForward(model, [ONE, TWO], x, pruning).greedy(NEW))


def test_a_static_cache_of_the_callers_that_is_emptied(model, positions):
    cache, answers = StaticCache(config=model.config.text_config, max_cache_len=200), []
    with pruned(model, positions) as pruning:
        model(**models.inputs(model, [TWO]), past_key_values=cache)
        for prompt in (TEXT, ONE):
            cache.reset()
            x = models.inputs(model, [prompt])
            model(**x, past_key_values=cache)
            assert len(pruning.last.indices) == len(models.images_of([prompt]))
            mask = torch.ones(1, int(cache.get_seq_length()) + 1, dtype=torch.long)
            logits = model(torch.tensor([[20]]), attention_mask=mask, past_key_values=cache).logits[0]
            answers.append((prompt, x, logits, pruning.last))
    for prompt, x, logits, record in answers:
        close(logits[0], FullForward(model, [prompt], x, pruning, records=[record]).logits(0, [20])[-1])


def test_nothing_is_left_when_the_pruning_is_gone(model):
    x = models.inputs(model, [ONE, TWO])
    text = models.inputs(model, [TEXT, [5]])
    expected = [model(**x).logits, model.generate(**x, **GREEDY), model.generate(**text, **GREEDY)]
    with pruned(model, "original"):
        model.generate(**x, **GREEDY)
        assert not model(**x).logits[:, -1].equal(expected[0][:, -1])
    now = [model(**x).logits, model.generate(**x, **GREEDY), model.generate(**text, **GREEDY)]
    assert all(a.equal(b) for a, b in zip(now, expected, strict=True))


def test_a_cache_goes_with_its_copy(model):
    """One prefill, several continuations: the copy of a cache knows its gaps."""
    x = models.inputs(model, [TWO])
    with pruned(model, "original") as pruning:
        cache = model(**x, use_cache=True).past_key_values
        answers = [
            model(torch.tensor([[word]]), past_key_values=copy.deepcopy(cache)).logits[0, -1] for word in (20, 30)
        ]  # fmt: skip
    hand = FullForward(model, [TWO], x, pruning)
    for answer, word in zip(answers, (20, 30), strict=True):
        close(answer, hand.logits(0, [word])[-1])


def test_threads(families):
    """Each thread has its own positions; two prunings, one with gaps and one without, side by side."""
    jobs = []
    with pruned(families["llava"], "original"), pruned(families["next"], "contiguous"):
        for i, prompt in enumerate([ONE, TWO, [*TEXT, "image"]]):
            for model in families.values():
                jobs.append((model, models.inputs(model, [prompt], seed=i)))
        expected = [model(**x).logits for model, x in jobs]
        wrong = []

        def run(model, x, logits):
            with torch.no_grad():
                wrong.extend(i for i in range(4) if not model(**x).logits.equal(logits))

        threads = [threading.Thread(target=run, args=(*job, e)) for job, e in zip(jobs, expected, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_pruned_model_that_assists_another(families):
    """The inner model's calls know nothing of the outer one's positions."""
    model, assistant = families["llava"], models.llava(seed=1)
    x = models.inputs(model, [ONE])
    text = models.inputs(assistant, [TEXT])["input_ids"]
    expected = assistant(text).logits
    answers = []

    def ask(ids, scores):
        answers.append(assistant(text).logits)
        return scores

    with pruned(model, "original"), pruned(assistant, "original", method=Uniform()):
        model.generate(**x, logits_processor=[ask], **GREEDY)
    assert len(answers) == NEW and all(a.equal(expected) for a in answers)


def test_the_policy_of_a_method(model):
    x = models.inputs(model, [ONE])
    for method, positions in ((GPrune(), "original"), (Scope(), "contiguous")):
        with prune(model, method, 5, newlines="keep", padding="exclude") as pruning:
            assert pruning.options.positions == positions
            logits = model(**x).logits[0]
        close(logits, FullForward(model, [ONE], x, pruning).logits())


# ------------------------------------------------------------------------------------------------ FlashAttention


def dense(q, k, v, **options):
    """[B, T, H, d]: what a FlashAttention kernel computes, causal from the end, with plain matrix products."""
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * (options.get("softmax_scale") or q.shape[-1] ** -0.5)
    if options.get("causal", True) and q.shape[1] > 1:
        t, s = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(t, s).triu(s - t + 1).bool(), float("-inf"))
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


def dense_varlen(q, k, v, cu_seqlens_q, cu_seqlens_k, **options):
    """[T, H, d]: sequences one behind the other."""
    q_edges, k_edges = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert len(q_edges) == len(k_edges) > 1
    pairs = zip(q_edges, q_edges[1:], k_edges, k_edges[1:], strict=False)
    parts = [dense(q[None, a:b], k[None, c:d], v[None, c:d], **options)[0] for a, b, c, d in pairs]
    return torch.cat(parts)


@pytest.fixture
def flash(monkeypatch):
    """transformers' own way to FlashAttention, with its kernels replaced: which keys a query sees is decided before them."""
    from transformers import modeling_flash_attention_utils as utils

    pad, unpad = utils._pad_input, utils._unpad_input

    def keywords(**options):
        return {"softmax_scale": options.get("softmax_scale"), "causal": options.get("is_causal", True)}

    five = ((dense, dense_varlen, None, pad, unpad), (keywords, keywords))
    four = ((dense, dense_varlen, pad, unpad), lambda **options: keywords(**options))
    monkeypatch.setattr(utils, "lazy_import_flash_attention", lambda *args, **kwargs: five if VERSION >= (5, 0) else four)


@pytest.mark.parametrize("rows", [1, 2])
def test_flash_attention_by_stand_in_kernels(families, flash, monkeypatch, positions, rows):
    """One row with gaps is no packed batch: neither in a prefill nor with images behind a cache."""
    model = families["llava"]
    x = models.inputs(model, [[*ONE, *TWO]] * rows)
    first, rest = (models.inputs(model, [p] * rows, mask=False)["input_ids"] for p in (ONE, TWO))
    pixels = x["pixel_values"].view(rows, 4, *x["pixel_values"].shape[1:])
    for name in ("_attn_implementation", "_attn_implementation_internal"):
        monkeypatch.setattr(model.model.language_model.config, name, "flash_attention_2", raising=False)
    with pruned(model, positions) as pruning:
        out = model(first, pixel_values=pixels[:, 0], use_cache=True)
        records = [pruning.last]
        then = model(rest, pixel_values=pixels[:, 1:].flatten(0, 1), past_key_values=out.past_key_values)
        records.append(pruning.last)
        step = model(torch.tensor([[20]] * rows), past_key_values=out.past_key_values)
    monkeypatch.undo()
    # the images of the two calls, in the order of the rows
    order = [i for row in range(rows) for i in (row, *range(rows + 3 * row, rows + 3 * row + 3))]
    record = joined(records)
    record = type(record)(**{name: [entries[i] for i in order] for name, entries in vars(record).items()})
    hand = FullForward(model, [[*ONE, *TWO]] * rows, x, pruning, records=[record])
    for row in range(rows):
        logits = torch.cat([y.logits[row] for y in (out, then, step)])
        close(logits, hand.logits(row, [20]))


def test_packed_sequences_by_stand_in_kernels(families, flash, monkeypatch):
    """FlashAttention takes a position that starts again for the border, if it starts where the first one does."""
    model, prompts = families["llava"], [ONE, [7, WIDE, 8]]
    x = models.inputs(model, [prompts[0] + prompts[1]], mask=False)
    first = models.inputs(model, prompts[:1])["input_ids"].shape[1]
    places = torch.cat([torch.arange(first), torch.arange(x["input_ids"].shape[1] - first)])[None]
    for name in ("_attn_implementation", "_attn_implementation_internal"):
        monkeypatch.setattr(model.model.language_model.config, name, "flash_attention_2", raising=False)
    with pruned(model, "contiguous") as pruning:
        logits = model(**x, position_ids=places, use_cache=False).logits[0]
    monkeypatch.undo()
    hand = FullForward(model, prompts, x, pruning)
    close(logits, torch.cat([hand.logits(0), hand.logits(1)]))


@pytest.mark.skipif(
    not (torch.cuda.is_available() and transformers.utils.is_flash_attn_2_available()),
    reason="needs a GPU and the flash-attn package",
)
def test_flash_attention(positions):
    model = models.llava(dtype=torch.bfloat16).cuda()
    x = {name: value.cuda() for name, value in models.inputs(model, [ONE, TWO]).items()}
    answers = []
    for attention in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(attention)
        for one in (x, {name: value[:1] for name, value in x.items()}):
            with pruned(model, positions):
                answers.append(model(**one).logits.float())
    for a, b in zip(answers[:2], answers[2:], strict=True):
        torch.testing.assert_close(a[:, -1], b[:, -1], atol=0.25, rtol=0.05)
