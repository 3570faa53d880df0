"""Attaching and removing: what ``prune`` refuses, what it leaves behind, what else lives in the process."""

import copy
import functools
import inspect
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

import models
import transformers

from vtkernels.integrations import prune
from vtkernels.methods import PAR, FoPru, GPrune, HoloV, Random, Scope, Selection, TopAttention, Uniform

PROMPTS = [[3, 4, "image", 5, 6], [7, "image", "image", 8]]


@pytest.fixture
def model():
    return models.llava()


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def state(model):
    """Everything an instance could carry away: attributes and hooks of every module, identities and order included."""
    return {name: [(key, frozen(value)) for key, value in vars(module).items()] for name, module in model.named_modules()}


def frozen(value):
    if isinstance(value, dict):
        return [(key, frozen(item)) for key, item in value.items()]
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


def use(model):
    x = models.inputs(model, PROMPTS)
    return model(**x).logits, model.generate(**x, max_new_tokens=4, do_sample=False)


def untouched(model, before):
    """Bit for bit what it was."""
    given_state, (logits, tokens) = before
    assert state(model) == given_state
    now = use(model)
    assert now[0].equal(logits) and now[1].equal(tokens)


@pytest.fixture
def before(model):
    use(model)  # the first use leaves traces of transformers' own
    answers = use(model)
    return state(model), answers


@pytest.mark.parametrize("method", [Scope(), FoPru(), GPrune(), HoloV(), PAR(), Uniform()], ids=lambda m: type(m).__name__)
def test_remove_restores(model, before, method):
    pruning = prune(model, method, keep=3)
    assert state(model) != before[0]
    pruned = use(model)
    assert pruned[0].shape != before[1][0].shape
    pruning.remove()
    untouched(model, before)
    pruning.remove()
    untouched(model, before)


def test_remove_after_a_call_that_watched_another_layer(model, before):
    with prune(model, Scope(), keep=3):
        model(**models.inputs(model, PROMPTS), vision_feature_layer=-1)
    untouched(model, before)


def test_the_context_manager_removes_also_after_an_error(model, before):
    class Mine(Exception):
        pass

    with pytest.raises(Mine), prune(model, Scope(), keep=3) as pruning:
        use(model)
        raise Mine
    untouched(model, before)
    assert len(pruning.last.indices) == 3  # the record stays


def test_the_record_survives_and_the_model_can_be_pruned_again(model, before):
    with prune(model, Scope(), keep=3):
        first = use(model)
    with prune(model, Uniform(), keep=2) as pruning:
        use(model)
        assert pruning.last.tokens_after == [2] * 3
    with prune(model, Scope(), keep=3):
        again = use(model)
    assert first[0].equal(again[0]) and first[1].equal(again[1])
    untouched(model, before)


def test_parameters_and_config_are_not_touched(model):
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    config = model.config.to_dict()
    with prune(model, Scope(), keep=3):
        use(model)
        assert model.state_dict().keys() == weights.keys()
    assert all(v.equal(weights[k]) for k, v in model.state_dict().items())
    assert model.config.to_dict() == config


def test_wrapped_attributes_look_like_the_originals(model):
    signatures = [inspect.signature(f) for f in (model.generate, model.model.get_image_features)]
    with prune(model, Scope(), keep=3):
        assert [inspect.signature(f) for f in (model.generate, model.model.get_image_features)] == signatures
        assert model.generate.__doc__ == type(model).generate.__doc__


def test_an_attribute_of_the_users_own_comes_back(model):
    calls = []
    original = model.generate

    @functools.wraps(original)
    def mine(*args, **kwargs):
        calls.append("mine")
        return original(*args, **kwargs)

    model.generate = mine
    with prune(model, Scope(), keep=3) as pruning:
        use(model)
        assert calls == ["mine"] and len(pruning.last.indices) == 3
    assert vars(model)["generate"] is mine


def test_a_wrapper_put_on_top_survives_and_still_works(model):
    expected = use(model)
    pruning = prune(model, Scope(), keep=3)
    ours, features = model.generate, model.model.get_image_features
    model.generate = theirs = lambda *args, **kwargs: ours(*args, **kwargs)
    model.model.get_image_features = functools.wraps(features)(lambda *args, **kwargs: features(*args, **kwargs))
    pruning.remove()
    assert model.generate is theirs
    now = use(model)
    assert now[0].equal(expected[0]) and now[1].equal(expected[1])


def test_two_models_pruned_differently(model):
    other = models.llava(seed=1)
    third = models.llava(seed=2)
    stock = use(third)
    with prune(model, Scope(), keep=3):
        one = use(model)
    with prune(other, Uniform(), keep=5):
        two = use(other)
    with prune(model, Scope(), keep=3) as a, prune(other, Uniform(), keep=5) as b:
        for _ in range(2):
            x, y = use(model), use(other)
            assert x[0].equal(one[0]) and x[1].equal(one[1])
            assert y[0].equal(two[0]) and y[1].equal(two[1])
        assert a.last.tokens_after == [3] * 3 and b.last.tokens_after == [5] * 3
        assert use(third)[0].equal(stock[0])


def test_two_models_that_share_a_tower(model):
    other = models.llava(seed=1)
    other.model.vision_tower = model.model.vision_tower
    with prune(model, Scope(), keep=3):
        one = use(model)
    with prune(other, TopAttention(), keep=5):
        two = use(other)
    with prune(model, Scope(), keep=3), prune(other, TopAttention(), keep=5):
        assert use(model)[0].equal(one[0]) and use(other)[0].equal(two[0])


def test_a_deep_copy_is_pruned_on_its_own(model, before):
    with prune(model, Scope(), keep=3) as pruning:
        expected = use(model)
        last = pruning.last
        twin = copy.deepcopy(model)
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.mul_(2)
        answers = use(twin)
        assert answers[0].equal(expected[0]) and answers[1].equal(expected[1])
        assert pruning.last is last, "the copy must not write into the original's record"
        for parameter in model.model.multi_modal_projector.parameters():
            parameter.div_(2)
    untouched(model, before)
    assert use(twin)[0].equal(expected[0])
    vars(twin)["_vtkernels_pruning"].remove()
    assert "generate" not in vars(twin) and use(twin)[0].equal(before[1][0])


@pytest.fixture
def dynamo():
    import torch._dynamo

    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def test_compiled_tower(model, dynamo):
    with prune(model, Scope(), keep=3), dynamo.config.patch(skip_nnmodule_hook_guards=False):
        expected = use(model)
        model.model.vision_tower.compile(backend="eager")
        answers = use(model)
    assert answers[0].equal(expected[0]) and answers[1].equal(expected[1])


def test_compiled_tower_that_skips_the_hooks(model, dynamo):
    """Never a wrong answer: the right one, or an error that says what to do. Methods without hooks do not care."""
    x = models.inputs(model, PROMPTS)
    with prune(model, Scope(), keep=3):
        expected = model(**x).logits
    model.model.vision_tower.compile(backend="eager")
    with prune(model, Scope(), keep=3):
        try:
            assert model(**x).logits.equal(expected)
        except RuntimeError as error:
            assert "leave the vision tower uncompiled, or set torch._dynamo.config" in str(error)
    with prune(model, Uniform(), keep=3) as pruning:
        assert model(**x).logits.isfinite().all() and pruning.last.tokens_after == [3] * 3


class TestRefusals:
    @pytest.mark.parametrize("keep", [0, -1, 17, 577])
    def test_budget_out_of_range(self, model, before, keep):
        with pytest.raises(ValueError, match=f"keep = {keep} must be between 1 and the 16 patch tokens"):
            prune(model, Scope(), keep=keep)
        untouched(model, before)

    @pytest.mark.parametrize("keep", [0.0, -0.5, 1.5, 64.0, float("nan")])
    def test_fraction_out_of_range(self, model, before, keep):
        with pytest.raises(ValueError, match=rf"keep = {keep} must be a fraction in \(0, 1\], or an int from 1 to 16"):
            prune(model, Scope(), keep=keep)
        untouched(model, before)

    @pytest.mark.parametrize("keep", [True, "64", None, torch.tensor(4), [4]])
    def test_budget_of_a_wrong_type(self, model, before, keep):
        with pytest.raises(TypeError, match="keep must be an int >= 1 or a fraction"):
            prune(model, Scope(), keep=keep)
        untouched(model, before)

    def test_model_of_another_class(self, model):
        for other in (torch.nn.Linear(2, 2), model.model, model.model.language_model, None):
            with pytest.raises(TypeError, match=f"does not support {type(other).__name__}; supported: LlavaForConditional"):
                prune(other, Scope(), keep=3)

    def test_tower_of_another_class(self):
        config = transformers.LlavaConfig(
            vision_config=transformers.PixtralVisionConfig(
                hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
            ),
            text_config=transformers.LlamaConfig(
                vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
            ),
            image_token_index=90,
        )
        model = transformers.LlavaForConditionalGeneration(config)
        given = state(model)
        with pytest.raises(TypeError, match="unsupported vision tower PixtralVisionModel; supported: CLIPVisionModel"):
            prune(model, Uniform(), keep=3)
        assert state(model) == given

    def test_class_attention_of_a_tower_without_a_class_token(self):
        model = models.llava(tower="siglip", strategy="full")
        given = state(model)

        class Mine:
            needs = frozenset({"class_attention"})

            def select(self, context, k):
                raise AssertionError

        message = "method Mine needs the attention of a class token, which SiglipVisionModel does not have"
        with pytest.raises(ValueError, match=rf"{message}.*'saliency' gets the attention received"):
            prune(model, Mine(), keep=3)
        assert state(model) == given

    def test_rows_of_the_image_that_the_budget_does_not_fill(self, model, before):
        with pytest.raises(ValueError, match="FoPru: strategy 'row' keeps whole rows of 4 tokens, got keep = 6; take 4 or 8"):
            prune(model, FoPru("row"), keep=6)
        untouched(model, before)

    def test_rows_of_an_image_without_a_grid(self):
        model = models.llava(tower="siglip")  # "default" drops its first patch
        with pytest.raises(ValueError, match=r"candidates that fill a grid of patches; use FoPru\(strategy='rank'\)"):
            prune(model, FoPru("row"), keep=8)

    def test_feature_layer_that_no_layer_puts_out(self, model, before):
        model.config.vision_feature_layer = 0
        for method in (Scope(), FoPru()):
            with pytest.raises(ValueError, match="vision_feature_layer = 0 is not the output of one of the 3 layers"):
                prune(model, method, keep=3)
        model.config.vision_feature_layer = [-2, -4]
        with pytest.raises(ValueError, match="vision_feature_layer = -4 is not"):
            prune(model, Scope(), keep=3)
        model.config.vision_feature_layer = -2
        untouched(model, before)

    def test_pruned_already(self, model, before):
        with prune(model, TopAttention(), keep=3):
            pruned = state(model)
            with pytest.raises(RuntimeError, match=r"pruned already \(by TopAttention\); call remove\(\)"):
                prune(model, Scope(), keep=3)
            assert state(model) == pruned
        untouched(model, before)

    def test_method_that_is_none(self, model, before):
        with pytest.raises(TypeError, match=r"method must be an instance, got the class Scope; write Scope\(\)"):
            prune(model, Scope, keep=3)
        for method in ("scope", None, object()):
            with pytest.raises(TypeError, match=r"method must have `needs` and `select\(context, k\)`"):
                prune(model, method, keep=3)
        untouched(model, before)

    def test_method_that_needs_what_is_not_offered(self, model, before):
        class Mine:
            needs = frozenset({"features", "text", "pixels"})

            def select(self, context, k):
                return Selection(torch.zeros(context.batch, k, dtype=torch.int64))

        with pytest.raises(ValueError, match=r"method Mine needs \['pixels', 'text'\], but this model offers"):
            prune(model, Mine(), keep=3)
        untouched(model, before)

    @pytest.mark.parametrize("version", ["4.56.2", "3.5.0", "6.0.0", "6.0.0.dev0"])
    def test_transformers_outside_the_range(self, model, before, monkeypatch, version):
        monkeypatch.setattr(transformers, "__version__", version)
        with pytest.raises(ImportError, match=rf"supports transformers 4.57 to 5.x, found {version}: pip install"):
            prune(model, Random(), keep=3)
        monkeypatch.undo()
        untouched(model, before)

    @pytest.mark.parametrize("version", ["4.57.0", "4.58.0.dev0", "5.0.0rc1", "5.99.1"])
    def test_transformers_inside_the_range(self, model, monkeypatch, version):
        monkeypatch.setattr(transformers, "__version__", version)
        prune(model, Random(), keep=3).remove()

    def test_without_transformers(self):
        code = (
            "import sys; sys.modules['transformers'] = None\n"
            "from vtkernels.integrations import prune\n"
            "from vtkernels.methods import Scope\n"
            "try: prune(None, Scope(), 3)\n"
            "except ImportError as error: assert \"pip install 'vtkernels[hf]'\" in str(error)\n"
            "else: raise SystemExit('no error')"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
