"""``pruning.measure()``: tokens against the prompt counted by hand, stages against a clock that only chosen parts move."""

import copy
import functools
import threading
import types

import models
import pytest
import torch
from models import Image

pytest.importorskip("transformers")

from vtkernels.integrations import prune
from vtkernels.integrations.transformers import pruning as pruning_module
from vtkernels.integrations.transformers import stats as stats_module
from vtkernels.integrations.transformers.stats import Meter, Stats
from vtkernels.methods import PAR, GPrune, Scope, Selection, TopAttention, Uniform

BUILD = {
    "llava": models.llava,
    "next": models.llava_next,
    "next-video": models.llava_next_video,
    "onevision": models.llava_onevision,
    "video-llava": models.video_llava,
    "vipllava": models.vipllava,
}
# milliseconds that each part takes on the clock of the tests; every sum of them is different
VISION, PROJECTOR, SELECT, LANGUAGE, HEAD, SHORTEN = 1, 10, 100, 1000, 10_000, 100_000


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=BUILD)
def family(request):
    return BUILD[request.param]()


class Clock:
    """Stands still until something is spent."""

    def __init__(self):
        self.milliseconds, self.readings = 0, 0

    def perf_counter_ns(self):
        self.readings += 1
        return self.milliseconds * 10**6

    def spend(self, owner, name, milliseconds):
        """``owner.name`` takes so long from now on."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def slow(*args, **kwargs):
            self.milliseconds += milliseconds
            return original(*args, **kwargs)

        return owner, name, slow


@pytest.fixture
def clock(monkeypatch):
    """The clock of the package, and how to let a model's parts take their time."""
    clock = Clock()
    monkeypatch.setattr(stats_module, "time", types.SimpleNamespace(perf_counter_ns=clock.perf_counter_ns))

    def spend(*what):
        owner, name, slow = clock.spend(*what)
        if isinstance(owner, torch.nn.Module):
            monkeypatch.setitem(vars(owner), name, slow)  # an attribute of the instance that goes away again
        else:
            monkeypatch.setattr(owner, name, slow)

    clock.let = spend
    return clock


def slow_parts(clock, model):
    for name in ("vision_tower", "image_tower", "video_tower"):
        if hasattr(model.model, name):
            clock.let(getattr(model.model, name), "forward", VISION)
    clock.let(model.model.multi_modal_projector, "forward", PROJECTOR)
    clock.let(model.model.language_model, "forward", LANGUAGE)
    clock.let(model.lm_head, "forward", HEAD)
    clock.let(pruning_module, "shorten", SHORTEN)


def slow_method(clock, needs):
    class Mine:
        pass

    Mine.needs = frozenset(needs)

    def select(self, context, k):
        clock.milliseconds += SELECT
        return Selection(torch.arange(k).expand(context.batch, -1).contiguous())

    Mine.select = select
    return Mine()


def prompts_of(model):
    """Rows of different lengths, one of them without any image, and a video where the model takes one."""
    last = [9, "video", 9] if models.takes_videos(model) else [9, "image", 9]
    return [[3, 4, "image", 5], [7, Image(60, 200), "image", 8, 8], last, [5, 6, 7]]


def lengths(model, prompts, sizes):
    """Tokens of each prompt, its images and videos as long as the next of ``sizes``."""
    sizes = iter(sizes)
    return tuple(sum(next(sizes) if models.is_visual(word) else 1 for word in prompt) for prompt in prompts)


def state(model):
    """Attributes and hooks of every module, identities included."""

    def frozen(value):
        return {k: frozen(v) for k, v in value.items()} if isinstance(value, dict) else id(value)

    return {name: frozen(vars(module)) for name, module in model.named_modules()}


def times(stats):
    return [getattr(stats, stage) for stage in ("vision", "selection", "projector", "prefill", "decode", "other")]


class TestTokens:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("call", ["forward", "generate"])
    def test_every_class(self, family, side, call):
        """Visual tokens and rows, without padding; the answer is the one that nobody measures."""
        prompts = prompts_of(family)
        x = models.inputs(family, prompts, side=side)
        words = [word for prompt in prompts for word in prompt if models.is_visual(word)]
        whole = [len(models.packed(family, word).tokens) for word in words]

        def ask(**x):
            if call == "forward":
                return family(**x).logits
            return family.generate(**x, min_new_tokens=3, max_new_tokens=3, do_sample=False)

        with prune(family, Scope(), keep=4) as pruning:
            expected = ask(**x)
            after = pruning.last.tokens_after
            with pruning.measure() as calls:
                answer = ask(**x)
            assert answer.equal(expected)
            assert calls == [pruning.stats]
        stats = pruning.stats
        kinds = sorted(range(len(words)), key=lambda i: words[i] == "video")  # videos follow the images
        assert stats.tokens_before == tuple(whole[i] for i in kinds)
        assert stats.tokens_after == tuple(after) and sum(after) < sum(whole)
        by_word = dict(zip(kinds, after, strict=True))
        assert stats.prompt_before == lengths(family, prompts, whole)
        assert stats.prompt_after == lengths(family, prompts, [by_word[i] for i in range(len(words))])
        assert stats.prompt_before[-1] == stats.prompt_after[-1] == 3
        assert stats.new_tokens == (0 if call == "forward" else 3)
        assert min(times(stats)) >= 0
        assert min(stats.vision, stats.projector, stats.prefill) > 0
        assert stats.total == pytest.approx(sum(times(stats)))

    def test_without_images(self, family):
        x = models.inputs(family, [[3, 4, 5, 6], [7, 8]])
        with prune(family, Scope(), keep=4) as pruning, pruning.measure() as calls:
            family.generate(**x, max_new_tokens=2, do_sample=False)
            cache = family(**x, use_cache=True).past_key_values
            mask = torch.cat([x["attention_mask"], torch.ones(2, 1, dtype=torch.int64)], dim=1)
            family(input_ids=torch.tensor([[5], [6]]), attention_mask=mask, past_key_values=cache)
            embeds = family.get_input_embeddings()(x["input_ids"])
            family(inputs_embeds=embeds, attention_mask=x["attention_mask"])
            family.generate(inputs_embeds=embeds, attention_mask=x["attention_mask"], max_new_tokens=2, do_sample=False)
        assert [stats.prompt_before for stats in calls] == [(4, 2), (4, 2), (1, 1), (4, 2), (4, 2)]
        assert [stats.new_tokens for stats in calls] == [2, 0, 0, 0, 2]
        for stats in calls:
            assert stats.prompt_after == stats.prompt_before
            assert stats.tokens_before == stats.tokens_after == ()
            assert stats.vision == stats.selection == stats.projector == 0 and stats.prefill > 0

    def test_padding_that_only_generate_can_see(self):
        model = models.llava()
        x = models.inputs(model, [[3, 4, "image", 5, 6], [7, "image"], [8]], mask=False)
        with prune(model, Scope(), keep=3) as pruning, pruning.measure():
            model.generate(**x, max_new_tokens=2, do_sample=False)
        assert pruning.stats.prompt_before == (20, 17, 1)
        assert pruning.stats.prompt_after == (7, 4, 1)

        x = models.inputs(model, [[3, 4, 5], [7]], mask=False)
        with prune(model, Scope(), keep=3) as pruning, pruning.measure():
            model.generate(**x, max_new_tokens=2, do_sample=False)
        assert pruning.stats.prompt_before == (3, 1)

    def test_a_prepared_mask_counts_columns(self):
        model = models.llava()
        mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
        with prune(model, Scope(), keep=3) as pruning, pruning.measure():
            model(input_ids=torch.tensor([[3, 4, 5, 6]]), attention_mask=mask)
        assert pruning.stats.prompt_before == (4,)

    @pytest.mark.parametrize(
        "how",
        [{"num_beams": 3, "do_sample": False}, {"num_return_sequences": 2, "do_sample": True}, {"use_cache": False}],
        ids=str,
    )
    def test_rows_are_those_of_the_prompt(self, how):
        model = models.llava()
        x = models.inputs(model, [[3, 4, "image", 5, 6], [7, "image"]])
        with prune(model, Scope(), keep=3) as pruning, pruning.measure():
            model.generate(**x, min_new_tokens=4, max_new_tokens=4, return_dict_in_generate=True, **how)
        stats = pruning.stats
        assert (stats.tokens_before, stats.tokens_after) == ((16, 16), (3, 3))
        assert (stats.prompt_before, stats.prompt_after, stats.new_tokens) == ((20, 17), (7, 4), 4)

    def test_assisted_generation_counts_tokens_and_not_steps(self):
        model = models.llava()
        x = models.inputs(model, [[3, 4, "image", 5, 6, 3, 4, 5, 6]])
        with prune(model, Scope(), keep=3) as pruning, pruning.measure():
            ids = model.generate(**x, min_new_tokens=6, max_new_tokens=6, do_sample=False, prompt_lookup_num_tokens=2)
        assert pruning.stats.new_tokens == ids.shape[1] - x["input_ids"].shape[1] == 6

    def test_a_second_turn_counts_what_the_cache_holds(self):
        model = models.llava()
        first = models.inputs(model, [[3, "image", 5]])
        with prune(model, Scope(), keep=3) as pruning, pruning.measure() as calls:
            turn = model.generate(**first, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([turn.sequences, torch.tensor([[6, 7]])], dim=1)
            model.generate(input_ids=ids, past_key_values=turn.past_key_values, max_new_tokens=2, do_sample=False)
        assert calls[1].prompt_before == (ids.shape[1],)
        assert calls[1].prompt_after == (ids.shape[1] - 13,)
        assert calls[1].tokens_before == ()


class TestStages:
    @pytest.mark.parametrize("needs", [(), ("projected",)], ids=["before-projector", "after-projector"])
    def test_every_class(self, family, clock, needs):
        """Exact: everything that moves the clock is known."""
        slow_parts(clock, family)
        video = models.takes_videos(family)
        x = models.inputs(family, [[3, 4, "image", *(["video"] if video else []), 5, 6]])
        encodings = 1 + video
        with prune(family, slow_method(clock, needs), keep=4, budget="joint") as pruning, pruning.measure() as calls:
            family(**x)
            family.generate(**x, min_new_tokens=3, max_new_tokens=3, do_sample=False)
        for stats, steps in zip(calls, (0, 2), strict=True):
            prefill, first = LANGUAGE + HEAD, encodings * (VISION + PROJECTOR + SELECT) + LANGUAGE + HEAD + SHORTEN
            wanted = [encodings * VISION, encodings * SELECT, encodings * PROJECTOR, prefill, steps * prefill, SHORTEN]
            assert times(stats) == pytest.approx(wanted)
            assert stats.first_token == pytest.approx(first)
            assert stats.total == pytest.approx(sum(wanted))
        assert calls[0].decode_per_token is None
        assert calls[1].decode_per_token == pytest.approx(LANGUAGE + HEAD)

    def test_merging_and_packing_are_selection(self, clock):
        model = models.llava_next()
        from vtkernels.integrations.transformers import selection

        clock.let(selection.ops, "merge_tokens", 3)
        clock.let(selection, "arrange", 5)
        with prune(model, PAR(), keep=4) as pruning, pruning.measure():
            model(**models.inputs(model, [[3, "image", 4]]))
        assert pruning.stats.selection == pytest.approx(8)

    def test_a_loss_is_none_of_the_stages(self, clock):
        model = models.llava()
        _, _, model.loss_function = clock.spend(model, "loss_function", 7)
        x = models.inputs(model, [[3, "image", 4]])
        with prune(model, Scope(), keep=4) as pruning, pruning.measure():
            model(**x, labels=x["input_ids"])
        assert times(pruning.stats) == pytest.approx([0, 0, 0, 0, 0, 7])

    def test_one_token_has_no_decoding(self, clock):
        model = models.llava()
        slow_parts(clock, model)

        def slow_choice(ids, scores):
            clock.milliseconds += 7
            return scores

        x = models.inputs(model, [[3, "image", 4]])
        with prune(model, Uniform(), keep=4) as pruning, pruning.measure():
            model.generate(**x, max_new_tokens=1, do_sample=False, logits_processor=[slow_choice])
        assert (pruning.stats.new_tokens, pruning.stats.decode, pruning.stats.decode_per_token) == (1, 0, None)
        assert pruning.stats.other == pytest.approx(SHORTEN + 7)

    def test_images_encoded_again_are_decoding(self, clock):
        """Without a cache, transformers 4 encodes the images in every step: the vision stage is that of the first."""
        model = models.llava()
        slow_parts(clock, model)
        x = models.inputs(model, [[3, "image", 4]])
        with prune(model, Uniform(), keep=4) as pruning, pruning.measure():
            model.generate(**x, min_new_tokens=3, max_new_tokens=3, do_sample=False, use_cache=False)
        stats = pruning.stats
        assert (stats.vision, stats.projector) == (pytest.approx(VISION), pytest.approx(PROJECTOR))
        again = 0 if models.FIVE else VISION + PROJECTOR
        assert stats.decode == pytest.approx(2 * (LANGUAGE + HEAD + again))

    def test_an_unpruned_model(self, clock):
        model = models.video_llava()
        slow_parts(clock, model)
        x = models.inputs(model, [[3, "image", 4, "video", 5], [6]])
        with Meter(model) as meter:
            model.generate(**x, min_new_tokens=3, max_new_tokens=3, do_sample=False)
        (stats,) = meter.calls
        prefill = LANGUAGE + HEAD
        assert times(stats) == pytest.approx([2 * VISION, 0, 2 * PROJECTOR, prefill, 2 * prefill, 0])
        assert stats.prompt_before == stats.prompt_after == (3 + 16 + 3 * 17, 1)


class TestOnRequest:
    def test_nothing_is_read_hooked_or_synchronised_outside(self, family, clock, monkeypatch):
        def refuse(*_):
            raise AssertionError("a device was synchronised")

        monkeypatch.setattr(torch.accelerator, "synchronize", refuse)
        monkeypatch.setattr(torch.cuda, "synchronize", refuse)
        x = models.inputs(family, [[3, "image", 4]])
        with prune(family, GPrune(), keep=4) as pruning:
            before = state(family)
            family(**x), family.generate(**x, max_new_tokens=2, do_sample=False)
            assert (clock.readings, pruning.stats, state(family)) == (0, None, before)
            with pruning.measure():
                assert state(family) != before
                family(**x)
            stats, readings = pruning.stats, clock.readings
            assert readings > 0
            family(**x), family.generate(**x, max_new_tokens=2, do_sample=False)
            assert (clock.readings, pruning.stats, state(family)) == (readings, stats, before)

    def test_a_device_is_synchronised_at_every_reading_but_not_while_decoding(self, clock, monkeypatch):
        model = models.llava()
        synchronised = []
        monkeypatch.setattr(torch.accelerator, "synchronize", synchronised.append)
        x = models.inputs(model, [[3, "image", 4]])
        with prune(model, Scope(), keep=4), Meter(model) as meter:
            meter._devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
            counts = []
            for length in (2, 12):
                before = clock.readings
                model.generate(**x, min_new_tokens=length, max_new_tokens=length, do_sample=False)
                counts.append(clock.readings - before)
        assert [stats.new_tokens for stats in meter.calls] == [2, 12]
        assert counts[0] == counts[1]
        assert synchronised == [torch.device("cuda", 0), torch.device("cuda", 1)] * sum(counts)

    def test_encoding_images_is_no_call(self):
        model = models.llava()
        with prune(model, Scope(), keep=4) as pruning, pruning.measure() as calls:
            model.get_image_features(models.pixels(model, 2))
        assert (calls, pruning.stats) == ([], None)

    def test_the_list_grows_with_every_call(self):
        model = models.llava()
        with prune(model, Scope(), keep=4) as pruning:
            with pruning.measure() as first:
                for count in (1, 2):
                    model(**models.inputs(model, [["image"] * count + [3]]))
            with pruning.measure() as second:
                assert pruning.stats is first[-1]
                model(**models.inputs(model, [["image", 3]]))
        assert [len(stats.tokens_before) for stats in first] == [1, 2]
        assert [pruning.stats] == second

    def test_a_call_that_fails_leaves_no_trace(self):
        model = models.llava()
        x = models.inputs(model, [[3, "image", 4]])
        with prune(model, Scope(), keep=4) as pruning, pruning.measure() as calls:
            model(**x)
            with pytest.raises(ValueError, match="does not match the images"):
                model(**x | {"pixel_values": models.pixels(model, 2)})
            assert calls == [pruning.stats]
            model(**x)
            assert len(calls) == 2

    def test_removing_ends_it(self):
        model = models.llava()
        x = models.inputs(model, [[3, "image", 4]])
        before = state(model)
        pruning = prune(model, Scope(), keep=4)
        with pruning.measure() as calls:
            model(**x)
            pruning.remove()
            assert state(model) == before
            model(**x)
        assert len(calls) == 1 and state(model) == before
        with pytest.raises(RuntimeError, match=r"the pruning was removed; measure\(\) before remove\(\)"), pruning.measure():
            pass

    def test_one_at_a_time(self):
        model = models.llava()
        with prune(model, Scope(), keep=4) as pruning, pruning.measure() as calls:
            with pytest.raises(RuntimeError, match="is being measured already"), pruning.measure():
                pass
            model(**models.inputs(model, [[3, "image", 4]]))
        assert len(calls) == 1

    def test_two_models(self):
        """One calls the other while it generates; each counts its own calls."""
        model, other = models.llava(), models.llava(seed=1)
        x = models.inputs(model, [[3, "image", 4]])

        def calls_the_other(ids, scores):
            other(**x)
            return scores

        with (
            prune(model, Scope(), keep=4) as a,
            prune(other, TopAttention(), keep=5) as b,
            a.measure() as ours,
            b.measure() as theirs,
        ):
            model.generate(**x, max_new_tokens=3, min_new_tokens=3, do_sample=False, logits_processor=[calls_the_other])
        assert [stats.tokens_after for stats in ours] == [(4,)]
        assert [stats.tokens_after for stats in theirs] == [(5,)] * 3

    @pytest.mark.skipif(not models.FIVE, reason="transformers 4 swaps forwards while a model runs: threads are not for it")
    def test_threads(self):
        model = models.llava()
        asked = [models.inputs(model, [["image"] * count + [3] * (5 - count)]) for count in (1, 2, 3, 4)]
        with prune(model, Scope(), keep=4) as pruning, pruning.measure() as calls:

            def ask(x):
                with torch.no_grad():
                    model.generate(**x, max_new_tokens=3, do_sample=False)

            threads = [threading.Thread(target=ask, args=[x]) for x in asked]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert sorted(stats.tokens_after for stats in calls) == [(4,), (4, 4), (4, 4, 4), (4, 4, 4, 4)]
        assert all(stats.prompt_before == (5 + 15 * len(stats.tokens_before),) for stats in calls)

    def test_a_copy_counts_for_itself(self):
        model = models.llava()
        x = models.inputs(model, [[3, "image", 4]])
        with prune(model, Scope(), keep=4) as pruning, pruning.measure() as calls:
            twin = copy.deepcopy(model)
            twin(**x)
            assert (calls, pruning.stats) == ([], None)
            model(**x)
        assert len(calls) == 1

    def test_an_adapter_around_the_model(self):
        peft = pytest.importorskip("peft")
        model = models.llava()
        x = models.inputs(model, [[3, "image", 4]])
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"))
        with prune(adapted, Scope(), keep=4) as pruning, pruning.measure() as calls:
            adapted(**x)
            adapted.generate(**x, min_new_tokens=3, max_new_tokens=3, do_sample=False)
        assert [stats.new_tokens for stats in calls] == [0, 3]
        assert all(stats.tokens_after == (4,) and min(times(stats)[:4]) > 0 for stats in calls)

    @pytest.mark.parametrize("first", ["prune", "peft"])
    def test_a_projector_that_an_adapter_saves(self, clock, first):
        """PEFT puts a copy in its place, hooks included."""
        peft = pytest.importorskip("peft")
        model = models.llava()
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["multi_modal_projector"], task_type="CAUSAL_LM")
        method = slow_method(clock, ())
        adapted = peft.get_peft_model(model, config) if first == "peft" else model
        with prune(adapted, method, keep=4) as pruning:
            adapted = peft.get_peft_model(model, config) if first == "prune" else adapted
            with pruning.measure():
                adapted(**models.inputs(model, [[3, "image", 4]]))
        assert times(pruning.stats) == pytest.approx([0, SELECT, 0, 0, 0, 0])

    def test_a_compiled_language_model(self):
        """A language model in one graph stays one."""
        import torch._dynamo

        torch._dynamo.reset()
        model = models.llava()
        x = models.inputs(model, [[3, "image", 4]])
        model.model.language_model.compile(backend="eager", fullgraph=True)
        with prune(model, Uniform(), keep=4) as pruning, pruning.measure() as calls:
            model(**x)
        assert calls[0].prefill > 0
        torch._dynamo.reset()

    @pytest.mark.parametrize("part", ["vision_tower", "multi_modal_projector", "lm_head"])
    def test_a_compiled_part_that_skips_its_hooks_is_named(self, part):
        model = models.llava()
        owner = model if part == "lm_head" else model.model
        stage = {"vision_tower": "vision", "multi_modal_projector": "projector", "lm_head": "prefill"}[part]
        x = models.inputs(model, [[3, "image", 4]])
        with Meter(model) as meter:
            getattr(owner, part)._compiled_call_impl = getattr(owner, part).forward  # what Module.compile leaves behind
            with pytest.raises(
                RuntimeError, match=f"no time was taken of {stage}: torch.compile ran the model without its hooks"
            ):
                model(**x)
        assert meter.calls == []


class TestText:
    def test_table(self):
        stats = Stats((576, 2340, 576), (64, 200, 64), (1200, 2400), (176, 260), 50.0, 5.0, 10.0, 25.0, 60.0, 50.0, 130.0, 4)
        assert str(stats) == "\n".join(
            [
                "visual tokens  3492 -> 328 (9.4%): 2 x 576 -> 64, 2340 -> 200",
                "prompt tokens  3600 -> 436 (12.1%): 2 rows, padding not counted",
                "",
                "stage             ms   share",
                "vision         50.00   25.0%",
                "selection       5.00    2.5%",
                "projector      10.00    5.0%",
                "prefill        25.00   12.5%",
                "decode         60.00   30.0%",
                "other          50.00   25.0%",
                "total         200.00  100.0%",
                "",
                "first token after 130.00 ms, 3 decoded after it, 20.00 ms each",
            ]
        )

    def test_without_images_and_without_decoding(self):
        text = str(Stats((), (), (5,), (5,), 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 4.0, 0))
        assert text.splitlines()[:2] == ["visual tokens  0 -> 0", "prompt tokens  5 -> 5 (100.0%): 1 row, padding not counted"]
        assert text.splitlines()[-1] == "first token after 4.00 ms"

    def test_frozen(self):
        stats = Stats((), (), (5,), (5,), 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 4.0, 0)
        with pytest.raises(AttributeError):
            stats.vision = 1.0
