"""A pruned forward against the prompt built by hand from the unpruned model's own projected features."""

import pytest
import torch

pytest.importorskip("transformers")

import models
from models import IMAGE, PAD

from vtkernels.integrations import prune
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Random, Scope, Selection, TopAttention, Uniform

METHODS = (Scope(), FoPru(), GPrune(), HoloV(), PAR(route="drop"), TopAttention(), Random(1), Uniform())
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda m: type(m).__name__)
each_side = pytest.mark.parametrize("side", ["left", "right"])

ONE = [3, 4, "image", 5, 6]
TWO = [7, "image", "image", 8, "image", 9]
TEXT = [10, 11, 12]
LONG = list(range(13, 50))


@pytest.fixture(scope="module")
def model():
    return models.llava()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def by_hand(model, prompts, pixel_values, kept, fixed=0, positions="contiguous"):
    """Logits [L, V] of every prompt, each alone, from embeddings with only the ``kept`` rows of each image."""
    features = iter(models.projected(model, pixel_values)) if pixel_values is not None else iter(())
    kept = iter(kept)
    logits = []
    for prompt in prompts:
        images = [next(features) for _ in range(prompt.count("image"))]
        choices = [torch.cat([torch.arange(fixed), fixed + next(kept)]) for _ in images]
        embeds = models.embedded(model, prompt, [image[choice] for image, choice in zip(images, choices, strict=True)])
        places = models.places(prompt, choices, [len(image) for image in images])
        more = {"position_ids": places} if positions == "original" else {}
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        logits.append(model(inputs_embeds=embeds, attention_mask=mask, **more).logits[0])
    return logits


def rows_of(logits, lengths, side):
    """The part of every row that is not padding."""
    return [row[-n:] if side == "left" else row[:n] for row, n in zip(logits, lengths, strict=True)]


def same(actual, expected, **tolerance):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, **(tolerance or {"atol": 2e-5, "rtol": 1e-4}))


@each_method
def test_all_tokens_kept_gives_the_unpruned_logits(model, method):
    x = models.inputs(model, [ONE, TWO, TEXT])
    expected = model(**x).logits
    for keep in (16, 1.0):
        with prune(model, method, keep=keep) as pruning:
            assert model(**x).logits.equal(expected)
        assert [i.tolist() for i in pruning.last.indices] == [list(range(16))] * 4


@each_method
@each_side
def test_a_mixed_batch_is_the_prompt_built_by_hand(model, method, side):
    prompts = [ONE, TWO, TEXT, LONG]
    x = models.inputs(model, prompts, side=side)
    with prune(model, method, keep=5) as pruning:
        logits = model(**x).logits
    expected = by_hand(model, prompts, x["pixel_values"], pruning.last.indices, positions=pruning.options.positions)
    assert logits.shape[:2] == (4, len(LONG))  # the row that was the longest, 51 tokens, is no longer
    same(rows_of(logits, map(len, expected), side), expected)


@each_method
@each_side
def test_a_batch_is_its_rows_one_by_one(model, method, side):
    prompts = [ONE, TWO, TEXT, [*LONG, "image"]]
    x = models.inputs(model, prompts, side=side)
    images = iter(x["pixel_values"])
    with prune(model, method, keep=3) as pruning:
        together, last = model(**x).logits, pruning.last
        alone, kept = [], []
        for prompt in prompts:
            single = models.inputs(model, [prompt])
            if "image" in prompt:
                single["pixel_values"] = torch.stack([next(images) for _ in range(prompt.count("image"))])
            alone.append(model(**single).logits[0])
            kept += pruning.last.indices
    assert len(last.indices) == len(kept) == 5
    assert all(a.equal(b) for a, b in zip(last.indices, kept, strict=True))
    same(rows_of(together, map(len, alone), side), alone)


def test_scope_keeps_what_the_published_formula_keeps(model):
    """Greedy coverage times head-summed class attention, from the maps of an eager twin."""
    twin = models.llava(attention="eager")
    twin.load_state_dict(model.state_dict())
    x = models.inputs(model, [ONE, ONE])
    tower = twin.model.vision_tower(x["pixel_values"], output_attentions=True, output_hidden_states=True)
    attention = tower.attentions[-2][:, :, 0, 1:].sum(1)
    features = torch.nn.functional.normalize(tower.hidden_states[-2][:, 1:], dim=-1)
    for image in range(2):
        similarity, covered, chosen = features[image] @ features[image].T, torch.zeros(16), []
        for _ in range(5):
            score = (similarity - covered[:, None]).clamp_min(0).sum(0) * attention[image]
            score[chosen] = -1
            chosen.append(int(score.argmax()))
            covered = torch.maximum(covered, similarity[:, chosen[-1]])
        with prune(model, Scope(), keep=5) as pruning:
            model(**x)
        assert pruning.last.indices[image].tolist() == sorted(chosen)
        torch.testing.assert_close(pruning.last.scores[image], attention[image])


@pytest.mark.parametrize("source", ["softmax", "logits"])
def test_fopru_keeps_what_the_published_formula_keeps(model, source):
    """Column and row means of the map of the feature layer, from the queries and keys that an eager twin multiplies."""
    x = models.inputs(model, [ONE, ONE])
    q, k = queries_and_keys(model, x["pixel_values"], 1)
    attention = q @ k.transpose(2, 3) * 8**-0.5
    attention = (attention.softmax(-1) if source == "softmax" else attention).mean(1)[:, 1:, 1:]
    received, given = attention.mean(1), attention.mean(2)
    significance = torch.where(received.var(1, keepdim=True) > given.var(1, keepdim=True), received, given)
    with prune(model, FoPru("rank", source), keep=0.34) as pruning:
        model(**x)
    torch.testing.assert_close(torch.stack(pruning.last.scores), significance)
    assert torch.stack(pruning.last.indices).equal(significance.topk(5).indices.sort().values)
    with prune(model, FoPru("row", source), keep=0.55) as pruning:
        logits = model(**x).logits
    rows = significance.view(2, 4, 4).sum(2).topk(2).indices.sort().values
    assert torch.stack(pruning.last.indices).equal((rows[:, :, None] * 4 + torch.arange(4)).flatten(1))
    same(logits, by_hand(model, [ONE, ONE], x["pixel_values"], pruning.last.indices))


def test_gprune_keeps_what_the_published_formula_keeps(model):
    """A matrix power of the softmaxed similarities of the projected features, over the degree."""
    x = models.inputs(model, [TWO])
    with prune(model, GPrune(threshold=0.2), keep=0.4) as pruning:
        model(**x)
    for image, features in enumerate(models.projected(model, x["pixel_values"])):
        n = torch.nn.functional.normalize(features, dim=-1)
        similarity = n @ n.T
        p = (similarity / 0.03).masked_fill(similarity < 0.2, -5000).softmax(-1)
        scores = features.norm(dim=-1) @ torch.linalg.matrix_power(p, 5) / (similarity >= 0.2).sum(1)
        torch.testing.assert_close(pruning.last.scores[image], scores, rtol=1e-4, atol=1e-4)
        assert pruning.last.indices[image].equal(scores.topk(6).indices.sort().values)


def test_gprune_sees_every_projected_token(model):
    seen = []
    handle = model.model.multi_modal_projector.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    with prune(model, GPrune(), keep=5):
        assert models.projected(model, models.inputs(model, [TWO])["pixel_values"]).shape == (3, 5, 32)
    handle.remove()
    assert seen == [(3, 16, 32)]


def test_the_record(model):
    x = models.inputs(model, [ONE, TEXT, TWO])
    with prune(model, Scope(), keep=0.3) as pruning:
        assert pruning.last.indices == [] and pruning.last.tokens_before == []
        model(**x)
        last = pruning.last
        assert [i.shape for i in last.indices] == [(5,)] * 4 and all(i.dtype == torch.int64 for i in last.indices)
        assert [s.shape for s in last.scores] == [(16,)] * 4 and all(s.dtype == torch.float32 for s in last.scores)
        assert (last.tokens_before, last.tokens_after, last.newlines) == ([16] * 4, [5] * 4, [0] * 4)
        model(**models.inputs(model, [TEXT]))
        assert pruning.last.indices == pruning.last.scores == pruning.last.tokens_after == []
    with prune(model, Uniform(), keep=5) as pruning:
        model(**x)
        assert pruning.last.scores == [None] * 4


def test_fraction_rounds_to_the_nearest_and_keeps_at_least_one(model):
    x = models.inputs(model, [ONE])
    for keep, expected in [(0.001, 1), (0.09, 1), (0.1, 2), (0.5, 8), (0.97, 16), (1, 1), (1.0, 16)]:
        with prune(model, Uniform(), keep=keep) as pruning:
            model(**x)
        assert pruning.last.tokens_after == [expected]


def test_the_projector_runs_on_kept_tokens_only(model):
    seen = []
    handle = model.model.multi_modal_projector.linear_1.register_forward_hook(lambda _, args, out: seen.append(args[0].shape))
    with prune(model, Scope(), keep=5):
        model(**models.inputs(model, [TWO]))
    handle.remove()
    assert seen == [(1, 15, 32)]  # of three images


def test_sdpa_stays_and_nobody_asks_for_attention_maps(model):
    calls = []

    def spy(module, args, kwargs, output):
        calls.append((module.config._attn_implementation, output[1]))

    handle = model.model.vision_tower.get_submodule(layer_path(model, 1)).register_forward_hook(spy, with_kwargs=True)
    with prune(model, Scope(), keep=5):
        model(**models.inputs(model, [ONE]))
    handle.remove()
    assert calls == [("sdpa", None)]


def layer_path(model, layer):
    body = "vision_model." if hasattr(model.model.vision_tower, "vision_model") else ""
    return f"{body}encoder.layers.{layer}.self_attn"


@pytest.mark.parametrize("feature_layer", [-2, -1, 1, 3, [-3, -2], [3, 1], [-1]])
@pytest.mark.parametrize("strategy", ["default", "full"])
def test_feature_layers_and_strategies(feature_layer, strategy):
    """Attention comes from the layer whose output is the (last) feature layer; the class token of "full" is kept on top."""
    model = models.llava(feature_layer=feature_layer, strategy=strategy)
    x = models.inputs(model, [ONE, TWO])
    assert models.per_image(model) == (17 if strategy == "full" else 16)
    last = feature_layer if isinstance(feature_layer, int) else feature_layer[-1]
    encoder_layer = last - 1 if last > 0 else last + 3
    attention = class_attention(model, x["pixel_values"], encoder_layer)
    with prune(model, Scope(), keep=5) as pruning:
        logits = model(**x).logits
    torch.testing.assert_close(torch.stack(pruning.last.scores), attention)
    fixed = 1 if strategy == "full" else 0
    assert pruning.last.tokens_before == [16 + fixed] * 4 and pruning.last.tokens_after == [5 + fixed] * 4
    expected = by_hand(model, [ONE, TWO], x["pixel_values"], pruning.last.indices, fixed)
    same(rows_of(logits, map(len, expected), "left"), expected)


def class_attention(model, pixel_values, layer):
    """[images, N] head-summed, recomputed from the input of the layer."""
    q, k = queries_and_keys(model, pixel_values, layer)
    return (q[:, :, :1] @ k.transpose(2, 3) * 8**-0.5).softmax(-1).sum(1)[:, 0, 1:]


def queries_and_keys(model, pixel_values, layer):
    """[images, H, T, d] each, recomputed from the input of the layer."""
    attention, seen = model.model.vision_tower.get_submodule(layer_path(model, layer)), []

    def hook(_, args, kwargs):
        seen.append(kwargs["hidden_states"] if not args else args[0])

    handle = attention.register_forward_pre_hook(hook, with_kwargs=True)
    model.model.vision_tower(pixel_values)
    handle.remove()
    q, k = (p(seen[0]).unflatten(-1, (4, 8)).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    return q, k


def test_layer_and_strategy_given_to_forward(model):
    full = models.llava(strategy="full", feature_layer=-1)
    full.load_state_dict(model.state_dict())
    x, y = models.inputs(full, [ONE]), models.inputs(model, [ONE])
    with prune(full, Scope(), keep=5):
        expected = full(**x).logits
    with prune(model, Scope(), keep=5) as pruning:
        configured, scores = model(**y).logits, pruning.last.scores[0]
        for _ in range(2):  # the second time the layer is watched already
            logits = model(**x, vision_feature_layer=-1, vision_feature_select_strategy="full").logits
            assert logits.equal(expected) and pruning.last.tokens_after == [6]
        assert model(**y).logits.equal(configured) and pruning.last.scores[0].equal(scores)


def test_labels(model):
    x = models.inputs(model, [ONE, TWO, TEXT], side="right")
    labels = x["input_ids"].masked_fill((x["input_ids"] == IMAGE) | (x["attention_mask"] == 0), -100)
    with prune(model, Scope(), keep=5) as pruning:
        loss = model(**x, labels=labels).loss
    expected = by_hand(model, [ONE, TWO, TEXT], x["pixel_values"], pruning.last.indices)
    losses = []
    for prompt, logits in zip([ONE, TWO, TEXT], expected, strict=True):
        target = torch.tensor([t for word in prompt for t in ([-100] * 5 if word == "image" else [word])])
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], target[1:], reduction="none", ignore_index=-100))
    flat = torch.cat(losses)
    torch.testing.assert_close(loss, flat[flat > 0].mean(), atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_projector_and_the_tower_through_kept_tokens(model):
    x = models.inputs(model, [ONE])
    with torch.enable_grad(), prune(model, Scope(), keep=5) as pruning:
        x["pixel_values"].requires_grad_()
        model(**x, labels=x["input_ids"].masked_fill(x["input_ids"] == IMAGE, -100)).loss.backward()
        through_pruning = model.model.multi_modal_projector.linear_1.weight.grad.clone()
        model.zero_grad()
    with torch.enable_grad():
        rows = models.projected(model, x["pixel_values"])[0][pruning.last.indices[0]]
        embeds = models.embedded(model, ONE, [rows])
        target = torch.tensor([[3, 4, *[-100] * 5, 5, 6]])
        model(inputs_embeds=embeds, labels=target).loss.backward()
        by_embeds = model.model.multi_modal_projector.linear_1.weight.grad.clone()
        model.zero_grad()
    assert through_pruning.abs().max() > 0 and x["pixel_values"].grad.abs().max() > 0
    torch.testing.assert_close(through_pruning, by_embeds, atol=1e-5, rtol=1e-3)


def test_training_mode_runs(model):
    model.train()
    with torch.enable_grad(), prune(model, Scope(), keep=5):
        out = model(**models.inputs(model, [ONE, TWO]))
    model.eval()
    assert out.logits.requires_grad


def test_positional_arguments(model):
    x = models.inputs(model, [ONE, TWO])
    with prune(model, Scope(), keep=5):
        assert model(x["input_ids"], x["pixel_values"], x["attention_mask"]).logits.equal(model(**x).logits)


def test_explicit_positions_stay_contiguous(model):
    x = models.inputs(model, [ONE])
    positions = torch.arange(x["input_ids"].shape[1])[None]
    with prune(model, Scope(), keep=5):
        expected = model(**x).logits
        assert model(**x, position_ids=positions).logits.equal(expected)
        torch.testing.assert_close(model(**x, position_ids=positions + 7).logits, expected, atol=2e-5, rtol=1e-4)


def test_a_decoding_loop_of_ones_own(model):
    """Prefill with a cache, then text alone: later chunks pass untouched and the record stays that of the prefill."""
    x = models.inputs(model, [ONE])
    with prune(model, Scope(), keep=5) as pruning:
        first = model(**x, use_cache=True)
        last = pruning.last
        mask = torch.ones(1, first.logits.shape[1] + 2, dtype=torch.long)
        chunk = torch.tensor([[20, 21]])
        then = model(input_ids=chunk, attention_mask=mask, past_key_values=first.past_key_values).logits[0]
        assert pruning.last is last
    expected = by_hand(model, [[*ONE, 20, 21]], x["pixel_values"], last.indices)[0]
    same([first.logits[0], then], [expected[:-2], expected[-2:]])


def test_a_second_image_behind_a_cache(model):
    x = models.inputs(model, [[*ONE, *TWO]])
    n = models.inputs(model, [ONE])["input_ids"].shape[1]
    with prune(model, Scope(), keep=5) as pruning:
        expected = model(**x).logits[0, 9:]
        all_kept = pruning.last.indices
        first = model(input_ids=x["input_ids"][:, :n], pixel_values=x["pixel_values"][:1], use_cache=True)
        then = model(
            input_ids=x["input_ids"][:, n:],
            pixel_values=x["pixel_values"][1:],
            attention_mask=torch.ones(1, 9 + x["input_ids"].shape[1] - n, dtype=torch.long),
            past_key_values=first.past_key_values,
        )
        assert [i.tolist() for i in pruning.last.indices] == [i.tolist() for i in all_kept[1:]]
    torch.testing.assert_close(then.logits[0], expected, atol=2e-5, rtol=1e-4)


def test_get_image_features_gives_kept_tokens(model):
    x = models.inputs(model, [TWO])
    features = models.projected(model, x["pixel_values"])
    with prune(model, Scope(), keep=5) as pruning:
        pruned = models.projected(model, x["pixel_values"])
    for image, kept, indices in zip(features, pruned, pruning.last.indices, strict=True):
        torch.testing.assert_close(kept, image[indices], atol=1e-6, rtol=1e-5)


def test_the_modules_alone_stay_stock(model):
    """Outside get_image_features the tower and the projector know nothing of pruning."""
    features = torch.randn(2, 16, 32)
    expected = model.model.multi_modal_projector(features)
    with prune(model, Scope(), keep=5):
        assert model.model.multi_modal_projector(features).equal(expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model = models.llava(dtype=dtype)
    x = models.inputs(model, [ONE, TWO])
    with prune(model, Scope(), keep=5) as pruning:
        logits = model(**x).logits
    assert logits.dtype == dtype and logits.isfinite().all()
    assert pruning.last.scores[0].dtype == torch.float32
    expected = by_hand(model, [ONE, TWO], x["pixel_values"], pruning.last.indices)
    same(rows_of(logits, map(len, expected), "left"), expected, atol=0.25, rtol=0.05)


def test_eager_and_sdpa_keep_the_same_tokens(model):
    eager = models.llava(attention="eager")
    eager.load_state_dict(model.state_dict())
    x = models.inputs(model, [ONE, TWO])
    answers = []
    for each in (model, eager):
        with prune(each, Scope(), keep=5) as pruning:
            answers.append((each(**x).logits[:, -1], pruning.last))
    assert all(a.equal(b) for a, b in zip(answers[0][1].indices, answers[1][1].indices, strict=True))
    torch.testing.assert_close(answers[0][0], answers[1][0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["default", "full"])
def test_a_tower_without_a_class_token(strategy):
    """SigLIP: "default" drops the first patch, as the stock model does, and there is no grid any more."""
    model = models.llava(tower="siglip", strategy=strategy)
    n = 15 if strategy == "default" else 16
    assert models.per_image(model) == n
    x = models.inputs(model, [ONE, TWO])
    seen = []

    class Mine:
        needs = frozenset({"features"})

        def select(self, context, k):
            seen.append((context.tokens, context.grid, context.features.shape[1]))
            return Selection(torch.arange(k).expand(context.batch, k))

    for method in (Mine(), *METHODS, FoPru(source="logits")):
        with prune(model, method, keep=5, positions="contiguous") as pruning:
            logits = model(**x).logits
        expected = by_hand(model, [ONE, TWO], x["pixel_values"], pruning.last.indices)
        same(rows_of(logits, map(len, expected), "left"), expected)
    assert seen == [(n, None if strategy == "default" else (4, 4), n)]


def test_fopru_without_a_class_token_takes_the_profiles_of_the_candidates():
    """SigLIP, and "default" drops its first patch: it counts in the softmax and is dropped after it, like a class token."""
    model = models.llava(tower="siglip")
    x = models.inputs(model, [ONE])
    q, k = queries_and_keys(model, x["pixel_values"], 1)
    attention = (q @ k.transpose(2, 3) * 8**-0.5).softmax(-1).mean(1)[:, 1:, 1:]
    with prune(model, FoPru(), keep=5) as pruning:
        model(**x)
    torch.testing.assert_close(pruning.last.scores[0], attention.mean(1)[0])


class TestOwnMethod:
    x_prompts = (ONE, TWO)

    @pytest.mark.parametrize("strategy", ["default", "full"])
    def test_is_given_what_it_asks_for(self, strategy):
        model = models.llava(strategy=strategy)
        x = models.inputs(model, self.x_prompts)
        seen = []

        class Mine:
            needs = frozenset({"features", "projected"})

            def select(self, context, k):
                seen.append(context)
                return Selection(context.projected.norm(dim=-1).topk(k).indices.sort().values)

        expected = models.projected(model, x["pixel_values"])[:, 1 if strategy == "full" else 0 :]
        with prune(model, Mine(), keep=5) as pruning:
            logits = model(**x).logits
        (context,) = seen
        assert (context.batch, context.tokens, context.grid, context.prefix) == (4, 16, (4, 4), 0)
        assert context.query is None and context.key is None
        torch.testing.assert_close(context.projected, expected)
        torch.testing.assert_close(model.model.multi_modal_projector(context.features), expected)
        by_embeds = by_hand(model, self.x_prompts, x["pixel_values"], pruning.last.indices, 1 if strategy == "full" else 0)
        same(rows_of(logits, map(len, by_embeds), "left"), by_embeds)

    def test_may_count_in_its_own_way(self, model):
        class Halves(Uniform):
            def kept_tokens(self, keep, tokens, grid):
                seen.append((keep, tokens, grid))
                return 2 * int(keep)

        seen = []
        with prune(model, Halves(), keep=3) as pruning:
            model(**models.inputs(model, [ONE]))
        assert pruning.last.tokens_after == [6] and set(seen) == {(3, 16, (4, 4))}
        with pytest.raises(ValueError, match=r"Halves\.kept_tokens must be between 1 and 16, got 18"):
            prune(model, Halves(), keep=9)

    @pytest.mark.parametrize(
        ("answer", "error", "message"),
        [
            (None, TypeError, r"Mine.select must return vt.Selection\(indices, scores\), got NoneType"),
            (Selection(torch.zeros(4, 3, dtype=torch.int64)), ValueError, r"int64 indices of shape \[4, 5\], got .*\[4, 3\]"),
            (Selection(torch.zeros(4, 5, dtype=torch.int32)), ValueError, r"int64 indices of shape \[4, 5\], got torch.int32"),
            (
                Selection(torch.arange(5).expand(4, 5), None, torch.zeros(4, 16)),
                ValueError,
                r"int64 assignment of shape \[4, 16\]",
            ),
            (
                Selection(torch.arange(5).expand(4, 5), None, torch.zeros(4, 5, dtype=torch.int64)),
                ValueError,
                r"int64 assignment of shape \[4, 16\] or None, got torch.int64 \[4, 5\]",
            ),
        ],
    )
    def test_gets_an_error_for_an_answer_that_does_not_fit(self, model, answer, error, message):
        class Mine:
            needs = frozenset()

            def select(self, context, k):
                return answer

        x = models.inputs(model, self.x_prompts)
        expected = model(**x).logits
        with prune(model, Mine(), keep=5) as pruning, pytest.raises(error, match=message):
            model(**x)
        assert pruning.last.indices == []
        assert model(**x).logits.equal(expected)


def test_errors_of_a_call_leave_the_pruning_usable(model):
    x = models.inputs(model, [ONE, TEXT])
    with prune(model, Scope(), keep=5) as pruning:
        expected = model(**x).logits
        with pytest.raises(ValueError, match=r"input_ids does not match the images: .* 16 placeholders per image"):
            model(**x | {"pixel_values": models.pixels(model, 2)})
        with pytest.raises(ValueError, match="give input_ids, not inputs_embeds, with images"):
            model(inputs_embeds=torch.zeros(1, 20, 32), pixel_values=models.pixels(model, 1))
        with pytest.raises(ValueError, match="a prepared mask cannot be shortened"):
            model(**x | {"attention_mask": torch.zeros(2, 1, 20, 20)})
        with pytest.raises(ValueError):  # the tower's own
            model(**x | {"pixel_values": torch.zeros(1, 3, 28, 28)})
        with pytest.raises(ValueError, match="vision_feature_layer = 0 is not the output of one of the 3 layers"):
            model(**x, vision_feature_layer=0)
        assert model(**x).logits.equal(expected) and pruning.last.tokens_after == [5]
    assert (x["input_ids"] == PAD).any()
