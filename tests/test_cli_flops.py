"""``vtkernels flops``: the table, JSON, the plot, what the papers print beside it, and what a user can get wrong."""

from __future__ import annotations

import json

import pytest

from vtkernels import flops
from vtkernels.cli import _published, main
from vtkernels.cli._arguments import METHODS
from vtkernels.cli._sizes import PRESETS


@pytest.fixture
def ask(capsys):
    """Run ``vtkernels flops``; returns stdout of a run that worked."""

    def run(*arguments: str) -> str:
        code = main(["flops", *arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        assert captured.err == ""
        return captured.out

    return run


def table(output: str) -> list[list[str]]:
    """Lines of the first table, cells split."""
    lines = [line.split() for line in output.split("\n\n")[1].splitlines()]
    return [line for line in lines if line[0] in ("unpruned", *METHODS)]


class TestTable:
    def test_every_method_by_default(self, ask):
        rows = table(ask())
        assert [row[0] for row in rows] == ["unpruned", *METHODS]
        assert [row[2] for row in rows] == ["576", *["64"] * len(METHODS)]
        # 8.50 TFLOP of prefill: 2 for each of 6.476e9 weights and 640 tokens, attention and head
        assert rows[0][6] == "8.50"
        # 2 for each weight of the layers and of the head; attention to 640 tokens of prompt and 16 of answer
        assert float(rows[0][9]) == pytest.approx((2 * 6.607e9 + 32 * 4 * 4096 * 656) / 1e9, abs=0.06)
        sides = {row[0]: row[1] for row in rows}
        assert sides == {"unpruned": "-"} | {
            name: "after" if name in ("GPrune", "HoloV", "PAR") else "before" for name in METHODS
        }

    def test_keeps_in_the_order_given(self, ask):
        rows = table(ask("--keep", "192", "--keep", "0.1", "--method", "gprune,uniform"))
        # of a fraction G-Prune keeps the floor of 57.6, as published; the others the nearest
        assert [row[2] for row in rows] == ["576", "192", "192", "57", "58"]

    def test_grouped_queries_shrink_the_cache(self, ask):
        vicuna, llama = (table(ask("--model", f"llava-next-{size}", "--method", "scope")) for size in ("7b", "8b"))
        assert float(vicuna[0][-1]) == pytest.approx(4 * float(llama[0][-1]), rel=0.01)

    def test_no_later_token_no_decode(self, ask):
        assert table(ask("--new-tokens", "1", "--method", "scope"))[0][-2] == "-"
        assert table(ask("--method", "scope"))[0][-2] != "-"

    def test_a_narrow_terminal_gets_fewer_columns(self, ask, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        output = ask("--model", "llava-next-8b")
        assert max(len(line) for line in output.split("\n\n")[1].splitlines()) <= 80
        assert len(table(output)[0]) == 9
        monkeypatch.setenv("COLUMNS", "120")
        assert len(table(ask("--model", "llava-next-8b"))[0]) == 11


class TestJson:
    def test_rows_are_the_formulas(self, ask):
        answer = json.loads(
            ask("--json", "--model", "LLaVA-NeXT-8b", "--keep", "320", "--method", "holov", "--batch", "2",
                "--prompt-tokens", "30", "--new-tokens", "7", "--dtype", "float8")
        )  # fmt: skip
        model = PRESETS["llava-next-8b"][1]
        settings = {"prompt_tokens": 30, "new_tokens": 7, "batch": 2, "dtype_bytes": 1.0}
        for row, method in zip(answer["rows"], (None, "HoloV"), strict=True):
            cost = flops.cost(model, method, 320, **settings)
            assert row["method"] == method
            assert all(row[name] == getattr(cost, name) for name in row if name not in ("method", "keep"))
        assert settings.items() <= answer.items()
        assert answer["model"]["text"]["kv_heads"] == 8
        assert [figure["method"] for figure in answer["published"]] == ["HoloV"] * 3

    def test_bytes_of_the_cache(self, ask):
        half, two = (
            json.loads(ask("--json", "--method", "scope", *given))["rows"][1]["kv_cache"]
            for given in (("--dtype-bytes", "0.5"), ("--dtype", "bfloat16"))
        )
        assert two == 4 * half == 2 * 32 * 4096 * (64 + 64 + 31) * 2


class TestConfig:
    @pytest.fixture
    def config(self, tmp_path):
        transformers = pytest.importorskip("transformers")

        def write(kind=transformers.LlavaConfig, **fields) -> str:
            vision = transformers.CLIPVisionConfig(
                hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14
            )
            text = transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, vocab_size=99)
            path = tmp_path / "config.json"
            path.write_text(kind(**{"vision_config": vision, "text_config": text} | fields).to_json_string())
            return str(path)

        return write

    def test_llava(self, ask, config):
        model = json.loads(ask("--json", "--config", config()))["model"]
        assert (model["tokens"], model["crops"], model["vocabulary"], model["text"]["kv_heads"]) == (16, 1, 99, 2)

    def test_llava_next(self, ask, config):
        transformers = pytest.importorskip("transformers")
        model = json.loads(ask("--json", "--config", config(transformers.LlavaNextConfig)))["model"]
        assert (model["tokens"], model["crops"], model["newlines"]) == (80, 5, 8)

    def test_another_tower(self, capsys, config):
        transformers = pytest.importorskip("transformers")
        assert main(["flops", "--config", config(vision_config=transformers.SiglipVisionConfig())]) == 2
        assert "'siglip_vision_model'; give one with a 'clip_vision_model'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("not json", "is not JSON"),
            ("[1]", "model_type None"),
            ('{"model_type": "llama"}', "model_type 'llama'"),
            ('{"model_type": "llava", "vision_config": 3}', "lacks the sizes"),
            (None, "cannot be read"),
        ],
    )
    def test_what_is_no_config(self, capsys, tmp_path, text, reason):
        pytest.importorskip("transformers")
        path = tmp_path / "config.json"
        if text is not None:
            path.write_text(text)
        assert main(["flops", "--config", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("vtkernels flops: error: argument --config: ")
        assert reason in error
        assert "Traceback" not in error


class TestPlot:
    def test_both_panels(self, ask, tmp_path):
        Image = pytest.importorskip("PIL.Image")
        pytest.importorskip("matplotlib")
        out = tmp_path / "cost.png"
        assert f"Wrote {out}" in ask("--plot", str(out), "--keep", "64", "--keep", "192", "--method", "scope")
        assert Image.open(out).width > 1000

    def test_dots_are_at_the_costs(self):
        pytest.importorskip("matplotlib")
        from vtkernels.cli import _plot

        model = PRESETS["llava-1.5-7b"][1]
        setting = {"prompt_tokens": 64, "new_tokens": 32, "batch": 1, "dtype_bytes": 2.0}
        left, right = _plot.draw(model, "PAR", [192, 64], title="LLaVA", **setting).axes
        for keep, place in ((64, 0), (192, 1)):
            cost = flops.cost(model, "PAR", keep, **setting)
            for axes, value in ((left, cost.first_token / 1e12), (right, cost.kv_cache / 2**20)):
                dots = [line for line in axes.lines if line.get_marker() == "o"]
                assert dots[place].get_xydata().tolist() == [[keep, pytest.approx(value)]]

    def test_with_json_nothing_else_is_printed(self, ask, tmp_path):
        pytest.importorskip("matplotlib")
        json.loads(ask("--json", "--plot", str(tmp_path / "cost.svg")))


class TestPublished:
    """What the notes claim: which assumptions give a published figure, and by how much ours differs."""

    def figures(self, method: str, prompt: int = 64) -> list[_published.Figure]:
        return _published.figures([method], prompt)

    def test_every_figure_is_printed_with_its_source(self, ask):
        output = " ".join(ask().split())
        for figure in _published.figures(list(METHODS), 64):
            assert f"{figure.method}, {figure.source}. " in output
            assert figure.cell(figure.published) in output
            assert figure.cell(figure.ours) in output
        assert "Published" not in ask("--method", "random,uniform,top-attention")

    def test_scope_is_latency(self):
        (figure,) = self.figures("Scope")
        assert figure.published == pytest.approx(3.19, abs=0.01)
        assert figure.ours > 2 * figure.published
        assert "Latency is not FLOPs" in figure.note

    def test_holov_counts_everything_as_attention(self):
        prefill, cache, _ = self.figures("HoloV")
        assert prefill.published == pytest.approx(100 * ((64 / 576) ** 2 - 1))
        assert prefill.published < prefill.ours < -75
        assert cache.published is None
        # an answer of one token: 64 of prompt and 576 or 64 of picture
        assert cache.ours == pytest.approx(100 * (128 / 640 - 1))

    def test_gprune_is_a_picture_of_4_to_3_counted_once(self):
        """By hand: 6.979e9 weights in the layers of the 8B model, attention 2 * 32 * 4096 multiply-adds a pair of tokens."""
        tokens, kept = 2340 + 91, 201 + 604 + 36 + 91
        whole, pruned = (n * (6_979_321_856 + 2 * 32 * 4096 * n) for n in (tokens, kept))
        assert whole == pytest.approx(18.52e12, rel=3e-4)
        reading = 100 * (pruned / whole - 1)
        assert reading == pytest.approx(-63.57, abs=0.1)
        size, ratio = self.figures("GPrune")
        assert size.ours == pytest.approx(46.5, abs=0.1)
        assert "18.52 for a 4:3 picture" in size.note
        assert "2340 visual tokens, and 91 of text" in size.note
        assert f"{reading:.2f}%" in ratio.note
        assert "21.8 GFLOP here and 116.9 as published" in ratio.note

    def test_par_depends_on_the_prompt(self):
        short, long = self.figures("PAR", 43)[0], self.figures("PAR", 100)[0]
        assert short.ours == pytest.approx(-83, abs=0.1)
        assert long.ours > -77
        assert "with 43 tokens of text" in short.note


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "gpt"], "--model: 'gpt' is no preset; choose from llava-1.5-7b"),
            (["--method", "best"], "--method: 'best' is no method; choose from scope"),
            (["--keep", "577"], "--keep: 577 is more than the 576 visual tokens"),
            (["--keep", "64", "--keep", "0"], "--keep: '0' is out of range"),
            (["--prompt-tokens", "0"], "--prompt-tokens: 0 is too small"),
            (["--new-tokens", "-1"], "--new-tokens: -1 is too small"),
            (["--batch", "0"], "--batch: 0 is too small"),
            (["--dtype-bytes", "0"], "--dtype-bytes: 0 is out of range"),
            (["--dtype-bytes", "nan"], "--dtype-bytes: nan is out of range"),
            (["--plot", "cost.txt"], "--plot: 'cost.txt' has no suffix of a picture"),
            (["--plot", "no/such/folder/cost.png"], "--plot: 'no/such/folder/cost.png' is in a folder 'no/such/folder'"),
        ],
    )
    def test_one_line(self, capsys, arguments, message):
        if "--plot" in arguments:
            pytest.importorskip("matplotlib")
        assert main(["flops", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"vtkernels flops: error: argument {message}")
        assert captured.err.count("\n") == 1

    @pytest.mark.parametrize(
        "arguments", [["--model", "llava-1.5-7b", "--config", "x"], ["--dtype", "float16", "--dtype-bytes", "1"]]
    )
    def test_one_or_the_other(self, capsys, arguments):
        assert main(["flops", *arguments]) == 2
        assert "not allowed with argument" in capsys.readouterr().err
