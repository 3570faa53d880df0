"""The Python of docs/models.md, top to bottom, as it stands there; its checkpoint is a small random one of the same class."""

import re
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("PIL")
pytest.importorskip("peft")

import models
import tokenizers
import transformers

import vtkernels as vt

ROOT = Path(__file__).parents[1]


def save_checkpoint(folder):
    """A LLaVA-NeXT whose tokenizer knows letters."""
    words = {"<pad>": models.PAD, "</s>": models.END, "<unk>": 2, "<image>": models.IMAGE}
    words |= {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzW ?", 3)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["<image>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )
    model = models.llava_next()
    size = model.config.vision_config.image_size
    # the processor that needs no torchvision is a class of its own from transformers 5 on
    kind = getattr(transformers, "LlavaNextImageProcessorPil", transformers.LlavaNextImageProcessor)
    processor = transformers.LlavaNextProcessor(
        kind(
            size={"shortest_edge": size},
            crop_size={"height": size, "width": size},
            image_grid_pinpoints=model.config.image_grid_pinpoints,
        ),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template="{% for part in messages[0]['content'] %}{{ part.get('text', '<image>') }}{% endfor %}",
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.mark.filterwarnings("ignore:keep = :UserWarning")  # the small model has fewer tokens than the text speaks of
def test_models(tmp_path, monkeypatch, capsys):
    save_checkpoint(tmp_path / "checkpoint")
    shutil.copy(ROOT / "vtkernels" / "assets" / "coffee.jpg", tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kind in (transformers.AutoProcessor, transformers.LlavaNextForConditionalGeneration):

        def load(name, load=kind.from_pretrained, **how):
            assert name == "llava-hf/llava-v1.6-mistral-7b-hf"
            return load(tmp_path / "checkpoint", **how)

        monkeypatch.setattr(kind, "from_pretrained", load)

    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL | re.MULTILINE)
    space: dict = {}
    for block in blocks:
        exec(compile(block, "docs/models.md", "exec"), space)
    assert len(blocks) == 4
    assert "generate" not in vars(space["model"])  # nothing stays pruned
    assert len(space["calls"]) == 3 and isinstance(space["pruning"].stats, vt.Stats)
    assert str(space["pruning"].stats) in capsys.readouterr().out


def test_table_of_defaults():
    """docs/models.md says of every method what its policy is."""
    text = (ROOT / "docs" / "models.md").read_text()
    rows = [
        [re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:6]] for line in text.splitlines() if line.startswith("| `")
    ]
    methods = {name: row for row in rows if all(hasattr(vt, name) for name in row[0]) for name in row[0]}
    assert set(methods) == {"Scope", "FoPru", "GPrune", "HoloV", "PAR", "TopAttention", "Random", "Uniform"}
    for name, (_, budgets, *others) in methods.items():
        policy = getattr(getattr(vt, name), "policy", vt.Policy())
        assert budgets == list(policy.budgets)
        assert others == [[policy.positions], [policy.newlines], [policy.padding]]


def test_table_of_classes():
    from vtkernels.integrations.transformers import _FAMILIES

    text = (ROOT / "docs" / "models.md").read_text()
    assert set(re.findall(r"^\| `(\w+ForConditionalGeneration)`", text, re.MULTILINE)) == set(_FAMILIES)
