"""Pruning together with what else people do with a model: compiling, training, adapters, dispatching, saving, threads."""

import copy
import dataclasses
import io
import pickle
import subprocess
import sys
import threading

import pytest
import torch

pytest.importorskip("transformers")

import models
import transformers
from by_hand import sequences
from full_forward import FullForward
from models import END, IMAGE, Image

from vtkernels.integrations import prune
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Scope, TopAttention, Uniform

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
WIDE, TALL = Image(56, 168), Image(200, 60)
ONE = [3, 4, "image", 5, 6]
TWO = [7, WIDE, TALL, 8, "image", 9]
TEXT = [10, 11, 12]
PROMPTS = [ONE, TWO, TEXT]
NEW = 4
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
BUILD = {"llava": models.llava, "next": models.llava_next}


def build(family, **how):
    model = BUILD[family](**how)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(params=["llava", "next"])
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return build(family)


@pytest.fixture(params=["contiguous", "original"])
def positions(request):
    return request.param


def pruned(model, positions="contiguous", *, method=None, keep=5):
    return prune(model, method or Scope(), keep, positions=positions, newlines="keep", padding="exclude")


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=5e-5, rtol=2e-4)


@torch.no_grad()
def answers(model, x):
    """Logits of a forward, new tokens, and the logits of every step."""
    out = model.generate(**x, return_dict_in_generate=True, output_logits=True, **GREEDY)
    return model(**x).logits, out.sequences, torch.stack(out.logits)


def check(got, expected):
    assert got[1].equal(expected[1])
    close(got[0], expected[0])
    close(got[2], expected[2])


# ------------------------------------------------------------------------------------------------ attention


@torch.no_grad()
def test_eager_and_sdpa(family, positions):
    x, got, kept = None, [], []
    for attention in ("sdpa", "eager"):
        model = build(family, attention=attention)
        x = models.inputs(model, PROMPTS)
        with pruned(model, positions) as pruning:
            got.append(answers(model, x))
            kept.append(pruning.last.indices)
    assert all(a.equal(b) for a, b in zip(*kept, strict=True))
    for row, length in enumerate(FullForward(model, PROMPTS, x, pruning).lengths()):
        close(got[0][0][row, -length:], got[1][0][row, -length:])
    assert got[0][1].equal(got[1][1])


# ------------------------------------------------------------------------------------------------ torch.compile


@pytest.fixture
def dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo
    torch._dynamo.reset()


@torch.no_grad()
def steps(model, x):
    """Logits of a prefill and of two single tokens behind it."""
    out = model(**x, use_cache=True)
    found = [out.logits]
    for word in (20, 21):
        found.append(model(torch.tensor([[word]]), past_key_values=out.past_key_values).logits)
    return found


@pytest.mark.parametrize(
    ("family", "positions", "order"),
    [
        ("llava", "contiguous", "long before"),
        ("llava", "original", "long before"),
        ("next", "original", "after"),
    ],
)
def test_a_compiled_language_model(family, positions, order, dynamo):
    """Compiled after pruning, or so long before that there are graphs for prompts of every length and for decoding."""
    model = build(family)
    x = models.inputs(model, [["image", 3, 4]])
    stock = steps(model, x)
    with pruned(model, positions):
        expected = steps(model, x)
    if order == "long before":
        model.model.language_model.compile(backend="eager")
        for words in ([5, 6, 7], [5, 6, 7, 8, 9]):
            steps(model, models.inputs(model, [words]))
    with pruned(model, positions):
        if order == "after":
            model.model.language_model.compile(backend="eager")
        close(steps(model, x), expected)
    assert dynamo.utils.counters["stats"]["unique_graphs"] > 0
    close(steps(model, x), stock)


def test_positions_that_a_compiled_language_model_does_not_see_are_an_error():
    """A language model that runs without its hooks would count on, silently."""
    model = build("llava")
    with pruned(model, "original"):
        hooks = model.model.language_model._forward_pre_hooks
        number = next(number for number, hook in hooks.items() if hook.__module__.startswith("vtkernels"))
        taken = hooks.pop(number)
        for call in (model, lambda **x: model.generate(**x, **GREEDY)):
            with pytest.raises(RuntimeError, match=r"because torch\.compile left them out: take positions = 'contiguous'"):
                call(**models.inputs(model, [ONE]))
        hooks[number] = taken


@pytest.mark.parametrize("order", ["before", "after"])
@torch.no_grad()
def test_a_compiled_model(order, dynamo):
    """The whole of it: the images are encoded as ever, the rest is compiled."""
    model = build("llava")
    x = models.inputs(model, [ONE, TWO])
    stock = model(**x).logits
    with pruned(model, "original"):
        expected = model(**x).logits
    if order == "before":
        model.compile(backend="eager")
    with pruned(model, "original") as pruning:
        if order == "after":
            model.compile(backend="eager")
        close(model(**x).logits, expected)
        assert len(pruning.last.indices) == 4
    assert dynamo.utils.counters["stats"]["unique_graphs"] > 0
    if order == "before":
        close(model(**x).logits, stock)


def test_a_wrapper_of_torch_compile_is_refused():
    with pytest.raises(TypeError, match=r"does not support OptimizedModule; .*torch.compile.* prune the one inside"):
        prune(torch.compile(build("llava"), backend="eager"), Scope(), 3)


# ------------------------------------------------------------------------------------------------ assisted generation


@torch.no_grad()
def test_an_assistant(family, positions):
    """A text model proposes the tokens; the answer is the greedy one."""
    model = build(family)
    other = transformers.LlamaForCausalLM(model.config.text_config).eval()
    other.model.load_state_dict(model.model.language_model.state_dict())
    other.lm_head.load_state_dict(model.lm_head.state_dict())
    x, options = models.inputs(model, [TWO]), {"eos_token_id": END, **GREEDY}
    try:
        model.generate(**x, assistant_model=other, **options)
    except (TypeError, ValueError) as error:
        pytest.skip(f"this transformers takes no assistant here, with or without pruning: {error}")
    with pruned(model, positions):
        expected = model.generate(**x, **options)
        assert model.generate(**x, assistant_model=other, **options).equal(expected)


# ------------------------------------------------------------------------------------------------ training


def labels_of(x):
    """Of the words, but for the first of each prompt, which nothing tells."""
    seen = x["attention_mask"]
    first = (seen.cumsum(1) == 1) & (seen == 1)
    return x["input_ids"].masked_fill((x["input_ids"] == IMAGE) | (seen == 0) | first, -100)


def loss_by_hand(model, prompts, x, pruning):
    """The mean over all words but the first of each prompt; what is kept is a constant."""
    sizes, losses, count = iter(pruning.last.tokens_after), [], 0
    for prompt, (embeds, places) in zip(prompts, sequences(model, prompts, x, pruning), strict=True):
        target = torch.tensor([t for word in prompt for t in ([-100] * next(sizes) if models.is_visual(word) else [word])])
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        logits = model(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], target[1:], reduction="sum"))
        count += int((target[1:] >= 0).sum())
    return sum(losses) / count


def same_gradients(got, expected):
    """Each within rounding of the greatest of all: some are zero in exact arithmetic."""
    assert got.keys() == expected.keys()
    greatest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], atol=float(greatest) * 1e-5, rtol=1e-3, msg=name)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    model.zero_grad()
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_and_gradients(model, positions, side):
    """The loss and every gradient are those of the prompts built by hand."""
    x = models.inputs(model, PROMPTS, side=side)
    with pruned(model, positions) as pruning:
        loss = model(**x, labels=labels_of(x)).loss
        got = gradients(model, loss)
    by_hand = loss_by_hand(model, PROMPTS, x, pruning)
    torch.testing.assert_close(loss, by_hand, atol=1e-5, rtol=1e-5)
    expected = gradients(model, by_hand)
    assert {"model.multi_modal_projector.linear_1.weight", "lm_head.weight"} <= got.keys()
    assert any("vision_tower" in name and "q_proj" in name for name in got)
    same_gradients(got, expected)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(family, reentrant):
    model = build(family)
    x = models.inputs(model, PROMPTS, side="right")
    labels = labels_of(x)
    with pruned(model, "original"):
        expected = gradients(model, model(**x, labels=labels).loss)
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
            x["pixel_values"].requires_grad_()
        got = gradients(model, model(**x, labels=labels).loss)
    same_gradients(got, expected)


@pytest.mark.parametrize(
    "method",
    [Scope(), FoPru(), GPrune(), HoloV(), PAR(0.3), PAR(0.3, route="drop"), TopAttention()],
    ids=["Scope", "FoPru", "GPrune", "HoloV", "PAR", "PAR drop", "TopAttention"],
)
def test_the_slope_of_the_loss(family, method):
    """A small step changes the loss as the gradient says, PAR's means of merged tokens included; the choice is a constant."""
    model, size, chosen = build(family), 1e-3, []
    x = models.inputs(model, [ONE, TWO], side="right")
    weights = [p for name, p in model.named_parameters() if "multi_modal_projector" in name]
    steps = [torch.randn(p.shape, generator=torch.Generator().manual_seed(4)) for p in weights]

    class Spy(type(method)):
        def select(self, context, k):
            if recording:
                chosen.append(super().select(context, k))
                return chosen[-1]
            return next(replay)

    recording, losses = True, []
    with pruned(model, method=Spy(**dataclasses.asdict(method))):
        model(**x, labels=labels_of(x)).loss.backward()
        slope = sum((step * p.grad).sum() for step, p in zip(steps, weights, strict=True))
        recording = False
        for sign in (1, -1):
            replay = iter(chosen)
            with torch.no_grad():
                for step, p in zip(steps, weights, strict=True):
                    p.add_(step, alpha=sign * size)
                losses.append(model(**x, labels=labels_of(x)).loss)
                for step, p in zip(steps, weights, strict=True):
                    p.sub_(step, alpha=sign * size)
            assert next(replay, None) is None
    assert slope.abs() > 0.1 and (method != PAR(0.3) or any(c.assignment is not None for c in chosen))
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * size), slope, rtol=0.01, atol=0.002)


def test_training_steps(family):
    """The tower is frozen, as people do; projector and language model learn, and the loss falls."""
    model = build(family)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.model.vision_tower.parameters():
        p.requires_grad_(False)
    x = models.inputs(model, PROMPTS, side="right")
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    with pruned(model, method=PAR(0.3)):
        model.train()
        for _ in range(4):
            optimiser.zero_grad()
            loss = model(**x, labels=labels_of(x)).loss
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        model.eval()
    assert losses == sorted(losses, reverse=True)
    changed = {name for name, p in model.named_parameters() if not p.equal(before[name])}
    assert not any("vision_tower" in name for name in changed)
    assert {name for name in before if "multi_modal_projector" in name} <= changed and "lm_head.weight" in changed


# ------------------------------------------------------------------------------------------------ adapters

LANGUAGE = r".*language_model.*\.(q_proj|v_proj)"
TOWER = r".*vision_tower.*\.(q_proj|k_proj)"


@pytest.fixture
def adapt():
    peft = pytest.importorskip("peft")

    def adapt(model, targets=LANGUAGE, **more):
        torch.manual_seed(1)  # random adapters, not those that start as nothing
        return peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, init_lora_weights=False, r=4, **more)).eval()

    return adapt


@pytest.mark.parametrize("first", ["prune", "peft"])
@torch.no_grad()
def test_an_adapter_on_the_language_model(family, positions, first, adapt):
    model = build(family)
    x = models.inputs(model, [TWO])
    with pruned(model, positions):
        plain = model(**x).logits
    if first == "prune":
        pruning = pruned(model, positions)
        adapted = adapt(model)
    else:
        adapted = adapt(model)
        pruning = pruned(adapted, positions)
        assert pruning.model is model
    got, tokens = adapted(**x).logits, adapted.generate(**x, **GREEDY)
    with adapted.disable_adapter():
        close(adapted(**x).logits, plain)
    pruning.remove()
    hand = FullForward(model, [TWO], x, pruning)
    close(got[0], hand.logits())
    assert (got - plain).abs().max() > 1e-2
    assert tokens[:, :-NEW].equal(x["input_ids"]) and tokens[:, -NEW:].equal(hand.greedy(NEW))
    assert adapted(**x).logits.shape[1] == x["input_ids"].shape[1]


@pytest.mark.parametrize("first", ["prune", "peft"])
@torch.no_grad()
def test_an_adapter_on_the_vision_tower(family, first, adapt):
    """What is captured includes the adapter: the choice is that of the model with the adapter merged into it."""
    model, merged = build(family), adapt(build(family), TOWER).merge_and_unload()
    x = models.inputs(model, [ONE, TWO])
    with pruned(model) as pruning:
        model(**x)
        without = pruning.last.scores
    with pruned(merged) as pruning:
        expected, wanted = answers(merged, x), pruning.last
    if first == "prune":
        pruning = pruned(model)
        model(**x)  # the projections are watched already
        adapted = adapt(model, TOWER)
    else:
        adapted = adapt(model, TOWER)
        pruning = pruned(adapted)
    check(answers(adapted, x), expected)
    assert all(a.equal(b) for a, b in zip(pruning.last.indices, wanted.indices, strict=True))
    for mine, theirs, other in zip(pruning.last.scores, wanted.scores, without, strict=True):
        torch.testing.assert_close(mine, theirs, equal_nan=True)
        assert (mine - other).nan_to_num().abs().max() > 1e-3
    back = adapted.merge_and_unload()
    assert back is model
    check(answers(model, x), expected)
    pruning.remove()
    check(answers(model, x), answers(merged, x))


@pytest.mark.parametrize("first", ["prune", "peft"])
@pytest.mark.parametrize("method", [Scope(), GPrune(), PAR()], ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_a_projector_that_an_adapter_saves(family, first, method, adapt):
    """PEFT copies the projector, hooks and all, and trains the copy."""
    model = build(family)
    x, saved = models.inputs(model, [ONE, TWO]), {"modules_to_save": ["multi_modal_projector"]}

    def train(adapted):
        for p in adapted.get_base_model().model.multi_modal_projector.modules_to_save.parameters():
            p.mul_(1.5)

    twin = adapt(build(family), **saved)
    train(twin)
    twin = twin.merge_and_unload()
    with pruned(twin, method=method) as pruning:
        expected, wanted = answers(twin, x), pruning.last
    if first == "prune":
        pruning = pruned(model, method=method)
        adapted = adapt(model, **saved)
    else:
        adapted = adapt(model, **saved)
        pruning = pruned(adapted, method=method)
    train(adapted)
    check(answers(adapted, x), expected)
    assert all(a.equal(b) for a, b in zip(pruning.last.indices, wanted.indices, strict=True))
    pruning.remove()
    with pruned(adapted, method=method) as pruning:  # hooks of the first pruning may be left on the copy
        check(answers(adapted, x), expected)
        adapted.merge_and_unload()  # the copy takes the place of the projector
        check(answers(model, x), expected)
    check(answers(model, x), answers(twin, x))


def test_training_an_adapter(family, adapt):
    model = build(family)
    adapted = adapt(model, f"{LANGUAGE}|{TOWER}", modules_to_save=["multi_modal_projector"])
    x = models.inputs(model, PROMPTS, side="right")
    with pruned(adapted, "original") as pruning:
        got = gradients(adapted, adapted(**x, labels=labels_of(x)).loss)
    expected = gradients(adapted, loss_by_hand(model, PROMPTS, x, pruning))
    for part in ("language_model", "vision_tower", "modules_to_save"):
        assert any(part in name for name in got), part
    assert all("lora" in name or "modules_to_save" in name for name in got)
    same_gradients(got, expected)


# ------------------------------------------------------------------------------------------------ accelerate


def spread(model):
    """A model whose parts stand on devices of their own: every one moves its inputs."""
    accelerate = pytest.importorskip("accelerate")
    core = "model." if hasattr(model.model, "vision_tower") else ""
    places = {f"{core}{name}": "cpu" for name, _ in model.model.named_children()} | {"lm_head": "cpu"}
    places |= {f"{core}{name}": "cpu" for name, _ in model.model.named_parameters(recurse=False)}
    return accelerate.dispatch_model(model, places, force_hooks=True)


def offload(model):
    """A model without weights: every module gets its own when it runs."""
    accelerate = pytest.importorskip("accelerate")
    return accelerate.cpu_offload(model, torch.device("cpu"))


@torch.no_grad()
def usable(model, x):
    """What a model can be asked for: transformers may not generate with every dispatched model, pruned or not."""
    for ask in (answers, lambda model, x: (model(**x).logits,)):
        try:
            ask(model, x)
            return ask
        except (NotImplementedError, RuntimeError) as error:
            message = str(error)
    pytest.skip(f"this transformers cannot run such a model, with or without pruning: {message}")


@pytest.mark.parametrize("how", [spread, offload])
@pytest.mark.parametrize("first", ["prune", "dispatch"])
@pytest.mark.parametrize("method", [Scope(), GPrune(), PAR()], ids=lambda m: type(m).__name__)
@torch.no_grad()
def test_a_model_that_accelerate_dispatched(family, how, first, method):
    model = build(family)
    x = models.inputs(model, [ONE, TWO])
    ask = usable(how(build(family)), x)
    stock = ask(model, x)
    with pruned(model, "original", method=method):
        expected = ask(model, x)
    if first == "dispatch":
        model = how(model)
    with pruned(model, "original", method=method):
        if first == "prune":
            model = how(model)
        close(ask(model, x), expected)
    close(ask(model, x), stock)


# ------------------------------------------------------------------------------------------------ saving and copying


def test_what_is_saved_is_the_model(model, tmp_path):
    x = models.inputs(model, [ONE, TWO])
    stock = answers(model, x)
    model.save_pretrained(tmp_path / "stock")
    with pruned(model, "original"):
        answers(model, x)
        model.save_pretrained(tmp_path / "pruned")
    files = sorted(path.name for path in (tmp_path / "stock").iterdir())
    assert "model.safetensors" in files and sorted(path.name for path in (tmp_path / "pruned").iterdir()) == files
    for name in files:
        assert (tmp_path / "pruned" / name).read_bytes() == (tmp_path / "stock" / name).read_bytes(), name
    loaded = type(model).from_pretrained(tmp_path / "pruned").eval()
    assert "generate" not in vars(loaded) and "forward" not in vars(loaded)
    check(answers(loaded, x), stock)


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("how", [copied, pickled, saved])
@pytest.mark.parametrize("method", [Scope(), PAR()], ids=lambda m: type(m).__name__)
def test_a_copy_is_pruned_on_its_own(family, how, method, monkeypatch):
    if how is not copied:  # what transformers 5 leaves on a model that was used cannot be pickled
        monkeypatch.setattr(models, "warm_up", lambda model: None)
    model = build(family)
    x = models.inputs(model, [ONE, TWO])
    with pruned(model, "original", method=method) as pruning:
        twin = how(model)
        expected, last = answers(model, x), pruning.last
    stock = answers(model, x)
    check(answers(twin, x), expected)
    assert pruning.last is last
    own = vars(twin)["_vtkernels_pruning"]
    assert own is not pruning and own.model is twin and len(own.last.indices) == 4
    own.remove()
    check(answers(twin, x), stock)
    assert "generate" not in vars(twin) and "forward" not in vars(twin)


def test_a_pickled_model_in_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "warm_up", lambda model: None)
    model = build("llava")
    torch.save(model, tmp_path / "stock.pt")
    with torch.no_grad(), pruned(model, "original"):
        torch.save(model, tmp_path / "pruned.pt")
        x = models.inputs(model, [ONE, TWO])
        torch.save((x, model(**x).logits), tmp_path / "expected.pt")
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "load = lambda name: torch.load(f'{sys.argv[1]}/{name}.pt', weights_only=False)\n"
        "x, expected = load('expected')\n"
        "with torch.no_grad():\n"
        "    try: load('stock')(**x)\n"
        "    except TypeError: raise SystemExit(3)\n"
        "    torch.testing.assert_close(load('pruned')(**x).logits, expected, atol=5e-5, rtol=2e-4)\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    if child.returncode == 3:
        pytest.skip("this transformers does not run a model that another process has pickled, with or without pruning")
    assert child.returncode == 0


def test_a_pruning_that_is_attached_again(model):
    x = models.inputs(model, [ONE, TWO])
    with pruned(model, "original") as pruning:
        expected = answers(model, x)
    stock = answers(model, x)
    with pruning.attach():
        check(answers(model, x), expected)
    check(answers(model, x), stock)


# ------------------------------------------------------------------------------------------------ threads


@torch.no_grad()
def test_threads_with_different_prompts_and_sizes(positions):
    if VERSION < (5, 12):
        pytest.skip("older transformers replace forwards while they run: calls side by side mix, with or without pruning")
    model = build("next")
    prompts = [[ONE], [TWO], [TEXT, TWO], [[8, TALL], [WIDE, 8, 9]]]
    batches = [models.inputs(model, batch, seed=i) for i, batch in enumerate(prompts)]
    wrong = []
    with pruned(model, positions, method=PAR()):
        expected = [answers(model, x) for x in batches]

        def run(i):
            for _ in range(2):
                got = answers(model, batches[i])
                wrong.extend(i for a, b in zip(got, expected[i], strict=True) if not a.equal(b))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


@torch.no_grad()
def test_two_models_side_by_side():
    one, two = build("llava"), build("next")
    x, y = models.inputs(one, [ONE, TWO]), models.inputs(two, [ONE, TWO])
    with pruned(one, "original", method=Uniform(), keep=3):
        expected = answers(one, x)
    with pruned(two, "contiguous", method=HoloV()):
        wanted = answers(two, y)
    with pruned(one, "original", method=Uniform(), keep=3) as a, pruned(two, "contiguous", method=HoloV()) as b:
        for _ in range(2):
            check(answers(one, x), expected)
            check(answers(two, y), wanted)
    assert a.last.tokens_after == [3] * 4 and len(b.last.newlines) == 4 and all(b.last.newlines)
