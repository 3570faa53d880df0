"""The command line, end to end on a tiny model, and everything a user can get wrong."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import vtkernels as vt
from vtkernels.cli import main

transformers = pytest.importorskip("transformers")
np = pytest.importorskip("numpy")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

from vtkernels.cli import _report  # noqa: E402
from vtkernels.cli._model import Geometry  # noqa: E402
from vtkernels.cli._stages import Sample  # noqa: E402
from vtkernels.cli.demo import _columns, _runs_on  # noqa: E402

TINY = Geometry(
    image=56, patch=14, vision_width=32, vision_heads=4, vision_layers=2, text_width=32, text_heads=4, text_layers=1
)
METHODS = ("Scope", "FoPru", "GPrune", "HoloV", "PAR", "TopAttention", "Random", "Uniform")


@pytest.fixture
def demo(tmp_path, capsys):
    """Run ``vtkernels demo`` on the tiny model; returns code, stdout, stderr and the output path."""

    def run(*arguments: str, out: str = "demo.png"):
        path = str(tmp_path / out)
        code = main(["demo", "--repeats", "1", "--out", path, *arguments], geometry=TINY)
        captured = capsys.readouterr()
        return code, captured.out, captured.err, path

    return run


@pytest.fixture
def wait(monkeypatch):
    """A clock that a busy machine does not move: a microsecond per reading, and what ``wait`` is told, in milliseconds."""
    from vtkernels.integrations.transformers import stats

    now = itertools.count(0, 1000)
    skipped = 0

    def skip(milliseconds: int) -> None:
        nonlocal skipped
        skipped += milliseconds * 1_000_000

    monkeypatch.setattr(stats, "time", SimpleNamespace(perf_counter_ns=lambda: next(now) + skipped))
    return skip


def rows(output: str) -> dict[str, list[str]]:
    """Lines of the table by method."""
    lines = [line.split() for line in output.splitlines()]
    return {line[0]: line[1:] for line in lines if len(line) > 1 and line[0] in ("unpruned", *METHODS) and line[1].isdigit()}


class TestDemo:
    def test_all_methods(self, demo):
        code, out, err, path = demo("--keep", "5", "--max-new-tokens", "2")
        assert code == 0, err
        table = rows(out)
        assert list(table) == ["unpruned", *METHODS]
        assert table["unpruned"][0] == "16"
        assert all(table[name][0] == "5" for name in METHODS)
        assert "weights are random" in " ".join(out.split())
        assert "warming up" in err
        assert Image.open(path).width > 1000

    def test_chosen_methods_in_the_order_given_and_fraction(self, demo):
        code, out, err, _ = demo("--keep", "0.25", "--method", "top-attention,SCOPE", "--method", "scope")
        assert code == 0, err
        assert list(rows(out)) == ["unpruned", "TopAttention", "Scope"]
        assert rows(out)["Scope"][0] == "4"

    def test_one_token_has_no_decode_time(self, demo):
        code, out, err, _ = demo("--keep", "4", "--method", "uniform", "--max-new-tokens", "1")
        assert code == 0, err
        assert "-" in rows(out)["Uniform"]
        assert "a decoded token took" not in out

    def test_merging_after_the_projector_is_selection(self, monkeypatch, demo, wait):
        from vtkernels import ops

        merge = ops.merge_tokens
        monkeypatch.setattr(ops, "merge_tokens", lambda *given: (wait(300), merge(*given))[1])
        _, out, _, _ = demo("--keep", "4", "--method", "par")
        assert 300 <= float(rows(out)["PAR"][2]) < 301

    def test_par_reads_the_bytes_of_the_prompt(self, monkeypatch, demo):
        from vtkernels import methods

        seen, select = [], methods.PAR.select

        def spy(method, context, k):
            seen.append(context)
            return select(method, context, k)

        monkeypatch.setattr(methods.PAR, "select", spy)
        assert demo("--keep", "4", "--method", "par", "--prompt", "Wo ist die Tür?")[0] == 0
        text = bytes(seen[0].prompt_ids[0, : seen[0].prompt_lengths[0]].tolist()).decode()
        assert text == "USER: \nWo ist die Tür? ASSISTANT:"
        assert seen[0].prompt.shape[1] == len(text.encode())

    def test_the_saliency_panel_names_what_it_shows(self, monkeypatch, demo):
        from vtkernels import viz

        drawn, figure = [], viz.figure
        monkeypatch.setattr(viz, "figure", lambda panels, **given: (drawn.append(panels), figure(panels, **given))[1])
        for given, title in (("gprune", "Mass after propagation"), ("par", "Relevance to the prompt"), ("uniform", "Uniform")):
            assert demo("--keep", "4", "--method", given)[0] == 0
            assert drawn[-1][1].title == title

    def test_backends_of_the_ops_are_named(self, demo):
        with vt.backend("reference"):
            assert "backend of the ops: reference" in " ".join(demo("--keep", "4", "--method", "scope")[1].split())
        places = {"scope_select": "native", "cls_attention": "native", "route_tokens": "reference"}
        assert _runs_on(places) == "native; reference for route_tokens"

    @pytest.mark.parametrize(("panels", "columns"), [(1, 1), (3, 3), (4, 4), (5, 5), (6, 3), (7, 4), (8, 4), (9, 3), (10, 5)])
    def test_columns_leave_few_gaps(self, panels, columns):
        assert _columns(panels) == columns

    def test_threads_are_put_back(self, demo):
        before = torch.get_num_threads()
        assert demo("--keep", "4", "--method", "uniform", "--threads", str(before + 1))[0] == 0
        assert torch.get_num_threads() == before

    def test_half_precision(self, demo):
        code, out, err, _ = demo("--keep", "4", "--dtype", "bfloat16")
        assert code == 0, err
        assert "bfloat16" in out

    @pytest.mark.parametrize("name", ["Uniform", "GPrune"])
    def test_the_selection_column_is_the_methods_time(self, monkeypatch, demo, wait, name):
        """A slow method shows up under selection, not under vision or prefill, before the projector or after it."""
        from vtkernels import methods

        method = getattr(methods, name)
        select = method.select
        monkeypatch.setattr(method, "select", lambda *given: (wait(300), select(*given))[1])
        _, out, _, _ = demo("--keep", "4", "--method", name)
        vision, selection, prefill, first = (float(cell) for cell in rows(out)[name][1:5])
        assert 300 <= selection <= first < 301
        assert max(vision, prefill) < 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny LLaVA on disk with a processor that knows bytes of ASCII as words."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0, "<unk>": 1, "<image>": 2} | {chr(code): code for code in range(3, 128)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["<image>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<pad>",
        model_input_names=["input_ids", "attention_mask"],
    )
    processor = transformers.LlavaProcessor(
        _image_processor()(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
        ),
        text_config=transformers.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, vocab_size=128
        ),
        image_token_index=2,
    )
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def _image_processor():
    """The processor that needs no torchvision: of its own from transformers 5 on, the default before."""
    return getattr(transformers, "CLIPImageProcessorPil", transformers.CLIPImageProcessor)


class TestCheckpoint:
    def test_answers_are_shown(self, demo, checkpoint):
        code, out, err, path = demo("--model", checkpoint, "--keep", "5", "--prompt", "a cup")
        assert code == 0, err
        assert rows(out)["Scope"][0] == "5"
        assert "weights are random" not in " ".join(out.split())
        assert all(f"\n{name}: " in out for name in ("unpruned", *METHODS))
        assert os.path.getsize(path) > 10_000

    def test_keep_is_checked_before_the_weights_are_read(self, demo, checkpoint):
        code, _, err, _ = demo("--model", checkpoint, "--keep", "17")
        assert (code, "17 is more than the 16 visual tokens" in err) == (2, True)

    def test_a_placeholder_in_the_prompt(self, demo, checkpoint):
        code, _, err, _ = demo("--model", checkpoint, "--keep", "4", "--prompt", "<image> again")
        assert (code, "holds the image placeholder" in err) == (2, True)

    def test_another_kind_of_model(self, demo, tmp_path):
        transformers.LlamaConfig().save_pretrained(tmp_path / "llama")
        code, _, err, _ = demo("--model", str(tmp_path / "llama"))
        assert (code, "is a 'llama' model" in err) == (2, True)


class TestBadInput:
    """One line on stderr that names the argument, the value and a fix; exit code 2; nothing written."""

    @pytest.fixture
    def refused(self, demo):
        def run(*arguments: str, **options: str) -> str:
            code, out, err, path = demo(*arguments, **options)
            assert code == 2
            assert out == ""
            line = err.strip().splitlines()[-1]
            assert line.startswith("vtkernels demo: error: argument --")
            assert ";" in line, "the message must name a fix"
            assert "Traceback" not in err
            assert not os.path.isfile(path)
            return line

        return run

    @pytest.mark.parametrize("value", ["0", "-3", "17", "1.5", "0.0", "many", "nan"])
    def test_keep(self, refused, value):
        assert value in refused(f"--keep={value}")

    def test_method(self, refused):
        assert "'best' is no method; choose from scope" in refused("--method", "scope,best")

    def test_numbers(self, refused):
        assert "--repeats: 0" in refused("--repeats", "0")
        assert "--max-new-tokens: 0" in refused("--max-new-tokens", "0")
        assert "--threads: -1" in refused("--threads", "-1")
        assert "--seed: -1" in refused("--seed", "-1")

    @pytest.mark.parametrize("value", ["abacus", "mps", "cuda:99"])
    def test_device(self, refused, value):
        assert repr(value) in refused("--device", value)

    def test_model(self, refused, tmp_path):
        missing = str(tmp_path / "nothing")
        assert missing in refused("--model", missing)

    def test_out(self, refused, tmp_path):
        (tmp_path / "folder.png").mkdir()
        assert "is a folder" in refused(out="folder.png")
        assert "does not exist" in refused(out="no/such/folder/demo.png")
        assert "no suffix of a picture" in refused(out="demo.txt")

    def test_out_is_checked_before_the_model_is_built(self, refused, monkeypatch):
        monkeypatch.setattr(transformers, "LlavaForConditionalGeneration", None)
        refused(out="no/such/folder/demo.png")

    @pytest.mark.parametrize("kind", ["missing", "folder", "empty", "text", "truncated"])
    def test_image(self, refused, tmp_path, kind):
        path = tmp_path / "picture.jpg"
        if kind == "folder":
            path.mkdir()
        elif kind == "truncated":
            noise = np.random.default_rng(0).integers(0, 255, (90, 90, 3), dtype=np.uint8)
            Image.fromarray(noise).save(path)
            path.write_bytes(path.read_bytes()[:2000])
        elif kind != "missing":
            path.write_text("" if kind == "empty" else "this is no picture")
        assert str(path) in refused("--image", str(path))

    def test_an_unwritable_output_that_exists_is_not_lost(self, demo, tmp_path):
        (tmp_path / "demo.png").write_text("mine")
        assert demo("--keep", "0")[0] == 2
        assert (tmp_path / "demo.png").read_text() == "mine"


class TestInfo:
    def test_json(self, capsys):
        assert main(["info", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["versions"]["vtkernels"] == vt.__version__
        assert facts["versions"]["torch"] == torch.__version__
        assert facts["ops"]["scope_select"]["cpu"] == vt.which("scope_select", "cpu")
        names = {"VTKERNELS_BACKEND", "VTKERNELS_NATIVE", "VTKERNELS_SIMD", "VTKERNELS_TRITON_TABLE", "TRITON_INTERPRET"}
        assert names == set(facts["environment"])
        triton = next(row for row in facts["backends"] if row["backend"] == "triton" and row["device"] == "cpu")
        assert (triton["available"], triton["reason"]) == (vt.status("triton").available, vt.status("triton").reason)

    def test_text_names_every_op_and_the_reason(self, capsys):
        assert main(["info"]) == 0
        out = capsys.readouterr().out
        assert all(op in out for op in ("scope_select", "compact_"))
        assert vt.status("triton").reason in out

    def test_without_the_native_library_and_without_extras(self):
        """A machine with torch alone: the rest is made impossible to import."""
        code = (
            "import sys\n"
            "for name in ('rich', 'transformers', 'PIL', 'matplotlib', 'numpy', 'triton'): sys.modules[name] = None\n"
            "import importlib.util as util; find = util.find_spec\n"
            "util.find_spec = lambda name, *rest: None if sys.modules.get(name, 0) is None else find(name, *rest)\n"
            "from vtkernels.cli import main\n"
            "assert main(['info']) == 0\n"
            "assert main(['info', '--json']) == 0\n"
            "assert main(['demo']) == 2\n"
            "assert main(['flops']) == 0\n"
            "assert main(['flops', '--config', 'config.json']) == 2\n"
            "assert main(['flops', '--plot', 'cost.png']) == 2\n"
        )
        done = _python("-c", code, VTKERNELS_NATIVE="0")
        assert done.returncode == 0, done.stderr
        assert "switched off by VTKERNELS_NATIVE=0" in done.stdout
        for extra in ("demo", "hf", "viz"):
            assert f'pip install "vtkernels[{extra}]"' in done.stderr
        assert "Traceback" not in done.stderr


class TestHelp:
    @pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["flops", "--help"], ["info", "--help"]])
    def test_has_examples(self, capsys, arguments):
        assert main(arguments) == 0
        assert "examples:\n  vtkernels" in capsys.readouterr().out

    def test_version(self):
        done = _python("-m", "vtkernels", "--version")
        assert (done.returncode, done.stdout.strip()) == (0, f"vtkernels {vt.__version__}")

    @pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
    def test_a_reader_that_stops_early(self):
        """As ``vtkernels flops | head -1``: no traceback."""
        command = [sys.executable, "-m", "vtkernels", "flops"]
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")

    def test_no_or_unknown_command(self, capsys):
        assert main([]) == 2
        assert main(["dance"]) == 2
        assert "dance" in capsys.readouterr().err


class TestReport:
    def test_median_and_spread(self):
        samples = [Sample(vision, 0.5, 1.0, 1.0, None) for vision in (10.0, 30.0, 20.0, 1000.0, 25.0)]
        result = _report.Result("Scope", object(), samples=samples)
        assert result.median("vision") == 25.0
        assert result.spread("vision") == 5.0
        assert result.cell("vision") == "25.0 ±5.0"
        assert result.cell("vision", spread=False) == "25.0"
        assert _report.Result("Scope", None, samples=samples[:1]).cell("vision") == "10.0"

    def test_a_slower_model_is_not_called_faster(self):
        base = _report.Result("unpruned", None, kept=16, samples=[Sample(1.0, 0.0, 5.0, 10.0, 1.0)])
        slow = _report.Result("Scope", object(), kept=4, samples=[Sample(1.0, 9.0, 2.0, 20.0, 1.0)])
        text = _report.paragraph([base, slow], tokens=16, random_weights=False)
        assert "0.50x as fast" in text
        assert "90.0% of the 10.0 ms" in text
        assert "machine is busy" not in text

    def test_scattered_times_are_called_so(self):
        noisy = [Sample(1.0, 1.0, 5.0, first, 1.0) for first in (10.0, 20.0, 30.0)]
        results = [_report.Result(name, None, kept=16, samples=noisy) for name in ("unpruned", "Scope")]
        assert "machine is busy" in _report.paragraph(results, tokens=16, random_weights=False)

    def test_a_narrow_terminal_gets_no_spreads(self, capsys, monkeypatch):
        result = _report.Result("Scope", object(), kept=4, samples=[Sample(1.0, 9.0, 2.0, 20.0, 1.0)] * 2)
        for columns, spread in (("80", False), ("120", True)):
            monkeypatch.setenv("COLUMNS", columns)
            _report.show([result], repeats=2, memory="exact")
            assert ("±" in capsys.readouterr().out) is spread


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=120
    )
