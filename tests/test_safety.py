"""Nothing is fetched by an import, and no checkpoint runs code of its own unless the user says so."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vtkernels.cli import main

# An importing process that may neither ask a network nor start a program.
SEALED = """
import sys
import torch
def refuse(event, given):
    if event == "subprocess.Popen" and given[0] == "fc-list":
        return  # matplotlib asks for the fonts, once
    if event.startswith(("socket.", "urllib.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork")):
        raise RuntimeError(f"{event} {given}")
sys.addaudithook(refuse)
import vtkernels as vt
import vtkernels.viz, vtkernels.flops, vtkernels.integrations.original, vtkernels.integrations.transformers
import vtkernels.cli, vtkernels.integrations.lmms_eval
assert vt.topk_select(torch.tensor([[1.0, 2.0]]), 1).tolist() == [[1]]
"""


def test_imports_fetch_nothing_and_start_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("PIL")
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", SEALED], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


class Marker:
    """Unpickling it creates a file: what a hostile checkpoint would do."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def hostile(tmp_path):
    """A checkpoint whose own Python code leaves a mark when it is imported; returns the folder and the mark."""
    pytest.importorskip("transformers")
    folder, mark = tmp_path / "hostile", tmp_path / "it_ran"
    folder.mkdir()
    code = f"""
import pathlib
from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
pathlib.Path({str(mark)!r}).touch()
class OwnConfig(LlavaConfig): model_type = "own_llava"
class OwnModel(LlavaForConditionalGeneration): config_class = OwnConfig
class OwnProcessor(LlavaProcessor): pass
"""
    (folder / "own.py").write_text(code)
    places = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForImageTextToText": "own.OwnModel",
        "AutoProcessor": "own.OwnProcessor",
    }
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "OwnProcessor", "auto_map": places}))

    def make(model_type: str) -> tuple[str, Path]:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": places}))
        return str(folder), mark

    return make


def commands(folder: str, out: Path) -> list[list[str]]:
    return [["demo", "--model", folder, "--out", str(out)], ["bench", "model", "--model", folder]]


@pytest.mark.parametrize("command", [0, 1], ids=["demo", "bench model"])
class TestRemoteCode:
    def test_a_model_that_only_its_own_code_knows_is_refused(self, hostile, command, tmp_path, capsys):
        folder, mark = hostile("own_llava")
        assert main(commands(folder, tmp_path / "out.png")[command]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "it brings its own code; add --trust-remote-code if you trust it" in error
        assert not mark.exists()

    def test_a_known_name_in_front_of_own_code_runs_none(self, hostile, command, tmp_path):
        folder, mark = hostile("llava")
        assert main(commands(folder, tmp_path / "out.png")[command]) == 2  # it has no weights
        assert not mark.exists()

    def test_the_flag_lets_it_run(self, hostile, command, tmp_path, monkeypatch):
        """So that the tests above refuse what would have run."""
        transformers = pytest.importorskip("transformers")
        monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        folder, mark = hostile("own_llava")
        main([*commands(folder, tmp_path / "out.png")[command], "--trust-remote-code"])
        assert mark.exists()


@pytest.fixture
def config_only(tmp_path):
    """A folder with the config of a tiny LLaVA and no weights yet."""
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**sizes, image_size=56, patch_size=14),
        text_config=transformers.LlamaConfig(**sizes, vocab_size=128),
        image_token_index=2,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    config.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_pickled_weights_run_no_code(config_only, tmp_path, capsys):
    mark = tmp_path / "it_ran"
    torch.save({"weight": Marker(mark)}, config_only / "pytorch_model.bin")
    assert main(["bench", "model", "--model", str(config_only), "--keep", "4"]) == 2
    assert not mark.exists()
    assert "which could run code; give a checkpoint in safetensors" in capsys.readouterr().err
    pickle.loads(pickle.dumps(Marker(mark)))
    assert mark.exists()  # an unpickler that trusts its input would have made it


@pytest.mark.parametrize("content", [b"", b"garbage", (1 << 40).to_bytes(8, "little") + b"{}"], ids=["empty", "text", "header"])
def test_damaged_weights_are_an_error_in_words(config_only, capsys, content):
    (config_only / "model.safetensors").write_bytes(content)
    assert main(["bench", "model", "--model", str(config_only), "--keep", "4"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"vtkernels bench model: error: argument --model: {str(config_only)!r} cannot be loaded (")
