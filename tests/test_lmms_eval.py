"""The lmms-eval plugin: arguments on their own, and the real lmms-eval on a tiny model and task (``make test-lmms-eval``)."""

import importlib.util
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtkernels as vt
from vtkernels.integrations.lmms_eval import arguments

KEEP, NEW = 5, 6
SIDE, PIXELS = 4, 56
CHAT = (
    "{% for message in messages %}{{ message['role'] }}: {% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}answer: {% endif %}"
)

# ---------------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("name", "given", "method", "rest"),
    [
        ("scope", {"alpha": 0.5, "pretrained": "x"}, vt.Scope(alpha=0.5), {"pretrained": "x"}),
        ("FoPru", {"strategy": "row"}, vt.FoPru(strategy="row"), {}),
        ("g-prune", {"threshold": 0.7, "iterations": 3}, vt.GPrune(threshold=0.7, iterations=3), {}),
        ("holov", {"crops": 16, "variant": "released"}, vt.HoloV(crops=16, variant="released"), {}),
        ("par", {"route": "drop"}, vt.PAR(route="drop"), {}),
        ("top_attention", {}, vt.TopAttention(), {}),
        ("random", {"seed": 3}, vt.Random(3), {}),
        ("uniform", {"alpha": 1}, vt.Uniform(), {"alpha": 1}),
    ],
)
def test_methods_and_options_by_name(name, given, method, rest):
    assert arguments.method_of(name, given) == (method, rest)


def test_every_method_has_a_name():
    assert set(arguments.known()) == {"scope", "fopru", "gprune", "holov", "par", "topattention", "random", "uniform"}
    assert arguments.options_of(vt.PAR) == ("threshold", "pool", "reduce", "route")  # the others cannot be typed


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: arguments.method_of(None, {}), ["method is missing", "scope"]),
        (lambda: arguments.method_of("scop", {}), ["method=scop is no method", "scope"]),
        (lambda: arguments.method_of("scope", {"combine": "max"}), ["combine", "'multiply'", "'max'"]),
        (lambda: arguments.method_of("scope", {"alpha": "high"}), ["--model_args"]),
        (lambda: arguments.check_keep(None), ["keep is missing", "keep=64"]),
        (lambda: arguments.check_keep("many"), ["keep=many", "number"]),
        (lambda: arguments.check_keep(True), ["keep=True"]),
        (lambda: arguments.check_rest({"beta": 1}, {"pretrained"}, vt.Scope()), ["beta", "alpha, combine", "pretrained"]),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError) as raised:
        call()
    assert all(word in str(raised.value) for word in words)


PAGE = (Path(__file__).parent.parent / "docs" / "lmms-eval.md").read_text()


def test_the_page_has_arguments_that_work():
    settings = re.findall(r"`(method=[^`]+)`", PAGE)
    assert len(settings) > 20
    for setting in settings:
        given = dict(part.split("=") for part in setting.split(","))
        keep = arguments.check_keep(float(given.pop("keep")))
        assert keep >= 1 or 0 < keep < 1
        values = {k: v if v.isalpha() else float(v) if "." in v else int(v) for k, v in given.items()}
        assert arguments.method_of(values.pop("method"), values)[1] == {}  # every option is one of the method


# ------------------------------------------------------------------------------------------------------------- the real one

real = pytest.mark.skipif(
    importlib.util.find_spec("lmms_eval") is None, reason="lmms_eval is not installed; make test-lmms-eval runs this"
)


def build(folder, family):
    """A LLaVA or LLaVA-NeXT of 16 patches a crop with random weights, a tokenizer of letters and a chat template, saved."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = ["<pad>", "</s>", "<s>", "<unk>", "<image>", "\n", *map(chr, range(32, 127))]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    size = {"size": {"shortest_edge": PIXELS}, "crop_size": {"height": PIXELS, "width": PIXELS}}
    tiles = {} if family == "Llava" else {"image_grid_pinpoints": [[PIXELS, 2 * PIXELS], [2 * PIXELS, PIXELS]]}
    images = getattr(transformers, "CLIPImageProcessor" if family == "Llava" else "LlavaNextImageProcessor")(**size, **tiles)
    processor = getattr(transformers, f"{family}Processor")(
        images, fast, patch_size=14, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    config = getattr(transformers, f"{family}Config")(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, image_size=PIXELS, patch_size=14
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=len(letters), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=2, eos_token_id=1,
        ),
        image_token_index=4,
        image_seq_length=SIDE * SIDE,
        **tiles,
    )  # fmt: skip
    torch.manual_seed(1)
    model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:  # initial weights are so small that no answer depends on the image
            weight.data *= 20 if "embed_tokens" in name or "position_embedding" in name else 5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build(tmp_path_factory.mktemp("llava"), "Llava")


@pytest.fixture(scope="module")
def next_checkpoint(tmp_path_factory):
    return build(tmp_path_factory.mktemp("llava_next"), "LlavaNext")


@pytest.fixture(scope="module")
def pictures():
    from PIL import Image

    draw = random.Random(0)
    return [
        Image.frombytes("RGB", size, draw.randbytes(3 * size[0] * size[1])) for size in ((80, 60), (60, 90), (70, 70), (56, 56))
    ]


def by_hand(checkpoint, pictures, method, *, keep=KEEP, simple=False):
    """Answers of ``model.generate`` under ``vt.prune`` (None: unpruned), and the tokens of each image before and after."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).eval()
    answers, kept = [], []
    pruning = None if method is None else vt.prune(model, method, keep)
    for i, picture in enumerate(pictures):
        parts = f"<image>\nwhat is {i}?" if simple else [{"type": "image"}, {"type": "text", "text": f"what is {i}?"}]
        text = (processor.tokenizer if simple else processor).apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
        )
        inputs = processor(images=[picture], text=text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=1, eos_token_id=1)
        answers.append(processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
        if pruning is not None:
            kept.append((pruning.last.tokens_before[0], pruning.last.tokens_after[0]))
    return answers, kept


@pytest.fixture(scope="module")
def task(tmp_path_factory, checkpoint, pictures):
    """A folder with a task of four questions; the answers to two of them are those of the pruned model."""
    import datasets

    folder = tmp_path_factory.mktemp("tasks")
    answers, _ = by_hand(checkpoint, pictures, vt.Scope())
    rows = {
        "image": pictures,
        "question": [f"what is {i}?" for i in range(len(pictures))],
        "answer": [*answers[:2], "no such answer", "no such answer"],
    }
    kinds = {"image": datasets.Image(), "question": datasets.Value("string"), "answer": datasets.Value("string")}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(str(folder / "test.parquet"))
    (folder / "utils.py").write_text(
        "def image(doc):\n    return [doc['image'].convert('RGB')]\n\n\n"
        "def text(doc, lmms_eval_specific_kwargs=None):\n    return doc['question']\n"
    )
    (folder / "vtkernels_tiny.yaml").write_text(f"""
task: vtkernels_tiny
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {folder / "test.parquet"}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.image
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: {NEW}, temperature: 0}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
    return folder


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No network, and caches in a folder of the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


@real
def test_one_command_prunes_and_scores(task, checkpoint, pictures, tmp_path, offline):
    """The answers are those of ``model.generate`` under ``vt.prune``, the score is theirs, the log says what was kept."""
    options = f"pretrained={checkpoint},method=scope,keep={KEEP},alpha=1.0,positions=contiguous"
    command = [
        str(Path(sys.executable).with_name("lmms-eval")), "--model", "llava_hf_vtkernels", "--model_args", options,
        "--device", "cpu", "--tasks", "vtkernels_tiny", "--include_path", str(task), "--batch_size", "1", "--verbosity", "INFO",
        "--log_samples", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    written = {kind: list((tmp_path / "out").rglob(kind)) for kind in ("*_results.json", "*samples_*.jsonl")}
    assert all(len(files) == 1 for files in written.values()), done.stdout + done.stderr
    results = json.loads(written["*_results.json"][0].read_text())
    samples = [json.loads(line) for line in written["*samples_*.jsonl"][0].read_text().splitlines()]
    answers = [sample["filtered_resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]

    want, kept = by_hand(checkpoint, pictures, vt.Scope())
    assert answers == want
    assert want != by_hand(checkpoint, pictures, None)[0]  # so a model that was not pruned would not pass
    assert kept == [(SIDE * SIDE, KEEP)] * len(pictures)
    assert results["results"]["vtkernels_tiny"]["exact_match,none"] == 0.5
    assert f"4 images, visual tokens {SIDE * SIDE} -> {KEEP} each" in done.stdout
    assert "Scope(alpha=1.0" in done.stdout


def simple_model(checkpoint, options):
    """The class of ``--force_simple``, as lmms-eval finds and makes it."""
    from lmms_eval.models import get_model

    kind = get_model("llava_hf_vtkernels", force_simple=True)
    return kind.create_from_arg_string(f"pretrained={checkpoint},{options}", {"device": "cpu", "batch_size": 1})


def requests(model, pictures):
    """What lmms-eval asks a simple model for."""
    from lmms_eval.api.instance import Instance

    model.task_dict["tiny"] = {"test": pictures}
    return [
        Instance(
            request_type="generate_until",
            arguments=(f"what is {i}?", {"max_new_tokens": NEW, "temperature": 0}, lambda doc: [doc], i, "tiny", "test"),
            idx=0,
            metadata={"task": "tiny", "doc_id": i, "repeats": 1},
        )
        for i in range(len(pictures))
    ]


@real
@pytest.mark.parametrize("method", [vt.GPrune(), vt.PAR(), vt.Random(3)], ids=lambda method: type(method).__name__)
def test_the_simple_class_gives_the_answers_of_prune(checkpoint, pictures, offline, method):
    """Methods that look behind the projector, at the prompt, and at nothing."""
    name = type(method).__name__.lower() + (",seed=3" if isinstance(method, vt.Random) else "")
    model = simple_model(checkpoint, f"method={name},keep={KEEP}")
    want, kept = by_hand(checkpoint, pictures, method, simple=True)
    assert model.generate_until(requests(model, pictures)) == want
    assert model.kept == kept == [(SIDE * SIDE, KEEP)] * len(pictures)
    inside = model.model
    model.clean()
    assert "forward" not in vars(inside) and not inside.model.vision_tower._forward_hooks


@real
@pytest.mark.parametrize("method", [vt.Scope(), vt.GPrune(), vt.HoloV()], ids=lambda method: type(method).__name__)
def test_llava_next(next_checkpoint, pictures, offline, method):
    """Tiles, of which images of other shapes have other numbers of tokens."""
    model = simple_model(next_checkpoint, f"method={type(method).__name__},keep=0.5")
    want, kept = by_hand(next_checkpoint, pictures, method, keep=0.5, simple=True)
    assert model.generate_until(requests(model, pictures)) == want != by_hand(next_checkpoint, pictures, None, simple=True)[0]
    assert model.kept == kept and all(after < before for before, after in kept) and len(set(kept)) > 1


@real
def test_a_failing_call_ends_the_run(checkpoint, pictures, offline, monkeypatch):
    """lmms-eval alone would score an empty answer."""
    model = simple_model(checkpoint, f"method=uniform,keep={KEEP}")
    calls = []

    def failing(context, k):
        calls.append(k)
        raise ValueError("no luck")

    monkeypatch.setattr(vt.Uniform, "select", lambda self, context, k: failing(context, k))
    with pytest.raises(RuntimeError, match=r"no luck.*empty answers"):
        model.generate_until(requests(model, pictures))
    assert len(calls) == 1  # the other questions are not asked


@real
def test_what_does_not_work_is_refused(checkpoint, offline):
    with pytest.raises(ValueError, match="beta is no option of Scope"):
        simple_model(checkpoint, "method=scope,keep=4,beta=1")
    with pytest.raises(ValueError, match="keep"):
        simple_model(checkpoint, "method=scope,keep=17")
    with pytest.raises(ValueError, match="budget must be"):
        simple_model(checkpoint, "method=holov,keep=4,budget=per_crop")
    with pytest.raises(NotImplementedError, match="generate_until tasks only"):
        simple_model(checkpoint, "method=scope,keep=4").loglikelihood([])


@real
def test_the_page_has_tasks_that_there_are():
    from lmms_eval.tasks import TaskManager

    listed = {task for tasks in re.findall(r"--tasks ([\w,]+)", PAGE) for task in tasks.split(",")}
    listed |= set(re.findall(r"`(\w+_(?:val|dev|test|img)|gqa|mme|pope)`", PAGE))
    assert len(listed) > 10
    assert listed <= set(TaskManager().all_tasks)
