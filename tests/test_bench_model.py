"""The model-level benchmark, end to end on tiny models: rows, gate, checkpoints, errors, table and figure."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

import vtkernels as vt
from vtkernels.cli._errors import UsageError

pytest.importorskip("transformers")
pytest.importorskip("numpy")
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parent.parent
PARTS = ("vision", "selection", "projector", "prefill", "decode", "other")


@pytest.fixture(scope="module", autouse=True)
def from_the_checkout():
    sys.path.insert(0, str(ROOT))
    yield
    sys.path.remove(str(ROOT))
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture(autouse=True)
def one_thread(threads):
    """On a busy machine several wait more than they work."""
    threads(1)


def bench(*arguments: str) -> int:
    """``bench model``."""
    module = importlib.import_module("benchmarks.model")
    parser = argparse.ArgumentParser()
    module.add_parser(parser.add_subparsers(dest="command"))
    return module.run(parser.parse_args(["model", "--threads", "1", *arguments]))


def load(path) -> list[dict[str, str]]:
    return importlib.import_module("benchmarks.harness").load(path)


def tiny(kind="llava"):
    """A model of the smoke run, float32."""
    models = importlib.import_module("benchmarks.models")
    geometry = models.replace(models.TINY, kind=kind)
    return models.random_subject(kind, geometry, (2, 1), seed=0, dtype=torch.float32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, from_the_checkout):
    """Rows of a smoke run of both kinds, in float32, so that what is chosen is the same on every processor."""
    path = tmp_path_factory.mktemp("bench") / "rows.csv"
    assert bench("--quick", "--dtype", "float32", "--new-tokens", "3", "--out", str(path)) == 0
    return load(path)


def by_case(rows):
    table = importlib.import_module("benchmarks.model_table")
    return table.groups(rows)


class TestRows:
    def test_every_case_is_there(self, measured):
        loops = ("Scope", "FoPru", "GPrune", "HoloV")
        methods = {"unpruned", "smaller image", "PAR", "TopAttention", "Random", "Uniform", *loops}
        methods |= {f"{name} (published loop)" for name in loops}
        groups = by_case(measured)
        assert list(groups) == [("llava-1.5-7b (tiny)", 2), ("llava-next-7b (tiny)", 2)]
        for cases in groups.values():
            assert {case["method"] for case in cases} == methods and len(cases) == len(methods)

    def test_stages_are_positive_and_add_up(self, measured):
        for cases in by_case(measured).values():
            for case in cases:
                times = {stage: case.ms(stage) for stage in case.stages}
                assert all(time > 0 for time in times.values()), times
                assert sum(times[stage] for stage in PARTS) == pytest.approx(times["total"], abs=1e-3)
                assert times["first_token"] + times["decode"] <= times["total"] + 1e-3
                assert times["vision_layers"] < times["vision"] and times["prefill_layers"] < times["prefill"]

    def test_tokens(self, measured):
        expected = {"llava-1.5-7b (tiny)": (64, 7, 7, 4), "llava-next-7b (tiny)": (336, 17, 33, 7)}
        for (model, _), cases in by_case(measured).items():
            before, dropped, newlines, smaller = expected[model]
            after = {case["method"]: int(case["tokens_after"]) for case in cases}
            assert {int(case["tokens_before"]) for case in cases} == {before} and after["unpruned"] == before
            assert after["Scope"] == after["Scope (published loop)"] == after["HoloV (published loop)"] == dropped
            assert after["GPrune"] == after["PAR"] == after["Random"] == newlines
            assert after["smaller image"] == smaller

    def test_rows_are_tidy(self, measured):
        keys = [tuple(row[name] for name in ("model", "method", "keep", "concurrency", "stage")) for row in measured]
        assert len(set(keys)) == len(keys)
        for row in measured:
            assert (row["vision_depth"], row["vision_full"], row["text_depth"], row["text_full"]) == ("2", "3", "1", "2")
            assert (row["text_tokens"], row["new_tokens"], row["repeats"], row["dtype"]) == ("48", "3", "1", "float32")
            assert row["device"] and row["torch"] and row["time"]
            assert row["peak_bytes"] == "" or int(row["peak_bytes"]) >= 0
            assert (row["keep"] == "") == (row["method"] == "unpruned")


def test_percentiles_are_between_the_values():
    quantiles = importlib.import_module("benchmarks.harness").quantiles
    assert quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert quantiles([3.0, 1.0, 2.0]) == pytest.approx((1.4, 2.0, 2.6))


class TestGate:
    @pytest.mark.parametrize("kind", ["llava", "llava_next"])
    def test_red_where_a_choice_differs(self, monkeypatch, kind):
        models, gate, selectors = (importlib.import_module(f"benchmarks.{n}") for n in ("models", "model_gate", "selectors"))
        subject = tiny(kind)
        batch = models.inputs(subject.model, 1, 8, 0)
        methods, keeps = selectors.methods(["Scope", "Random"], 0), list(subject.keeps[-1:])
        assert set(gate.check(subject.model, batch, methods, keeps).values()) == {"same"}

        topk = vt.ops.topk_select

        def first(scores, k):  # wrong wherever it is not the reference that runs
            return topk(scores, k) if vt.which("topk_select") == "reference" else torch.arange(k).expand(len(scores), -1)

        with monkeypatch.context() as patch:
            patch.setattr(vt.ops, "topk_select", first)
            verdicts = gate.check(subject.model, batch, methods, keeps)
            assert verdicts["Scope", keeps[0]] == "same"
            assert re.fullmatch(r"red: \d+\.\d% of the picks differ", verdicts["Random", keeps[0]])
        monkeypatch.setattr(selectors.published, "scope", lambda x, a, k: torch.arange(k).expand(len(x), -1))
        verdicts = gate.check(subject.model, batch, methods, keeps)
        assert verdicts["Scope (published loop)", keeps[0]].startswith("red: ") and verdicts["Random", keeps[0]] == "same"

    @pytest.mark.parametrize("kind", ["llava", "llava_next"])
    def test_red_where_the_prompt_is_not_what_was_kept(self, monkeypatch, kind):
        models, gate = (importlib.import_module(f"benchmarks.{name}") for name in ("models", "model_gate"))
        subject = tiny(kind)
        batch = models.inputs(subject.model, 2, 8, 0)
        gate.check_by_hand(subject.model, batch, 6)
        places = gate._places
        monkeypatch.setattr(gate, "_places", lambda config: places(config).flip(0))
        with pytest.raises(AssertionError, match="pruned by hand, the prompt differs"):
            gate.check_by_hand(subject.model, batch, 6)

    def test_what_is_red_is_timed_and_marked(self, monkeypatch, capsys, tmp_path):
        gate, out = importlib.import_module("benchmarks.model_gate"), tmp_path / "rows.csv"

        def red(*_):
            raise gate.RedGate("they differ")

        monkeypatch.setattr(gate, "check_by_hand", red)
        assert bench("--quick", "--dtype", "float32", "--shape", "llava-1.5-7b", "--method", "uniform", "--out", str(out)) == 1
        assert "llava-1.5-7b (tiny), concurrency 2, Uniform at 7: red: they differ" in capsys.readouterr().err
        gates = {row["method"]: row["gate"] for row in load(out) if row["p50_ms"]}
        assert gates == {"unpruned": "", "Uniform": "red: they differ", "smaller image": ""}

    def test_a_gate_without_memory_is_no_gate(self, monkeypatch):
        models, gate, selectors = (importlib.import_module(f"benchmarks.{n}") for n in ("models", "model_gate", "selectors"))
        subject = tiny()
        batch = models.inputs(subject.model, 1, 8, 0)

        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(selectors, "compared", full)
        assert gate.check(subject.model, batch, selectors.methods(["Uniform"], 0), [7]) == {
            ("Uniform", 7): "not compared: out of memory"
        }


class TestFailures:
    def test_one_case_costs_one_row(self, monkeypatch, capsys, tmp_path):
        model, out = importlib.import_module("benchmarks.model"), tmp_path / "rows.csv"
        generate = model.generate

        def full(case, new, cut):
            if case.method == "Uniform":
                raise torch.OutOfMemoryError("CUDA out of memory")
            return generate(case, new, cut)

        monkeypatch.setattr(model, "generate", full)
        assert (
            bench("--quick", "--dtype", "float32", "--shape", "llava-1.5-7b", "--method", "uniform,random", "--out", str(out))
            == 1
        )
        shown = capsys.readouterr()
        assert "Uniform at 7: failed: out of memory" in shown.err and "Random" in shown.out and "Uniform" not in shown.out
        rows = load(out)
        assert [row["gate"] for row in rows if row["method"] == "Uniform"] == ["failed: out of memory"]
        assert {row["gate"] for row in rows if row["method"] == "Random" and row["p50_ms"]} == {"same"}
        assert "Uniform" not in importlib.import_module("benchmarks.model").markdown(rows)

    @pytest.mark.parametrize("where", ["_subject", "_cases"])
    def test_a_model_that_does_not_fit_costs_its_own_rows(self, monkeypatch, where, tmp_path):
        model, out = importlib.import_module("benchmarks.model"), tmp_path / "rows.csv"
        first, seen = getattr(model, where), []

        def full(*given):
            seen.append(None)
            if len(seen) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return first(*given)

        monkeypatch.setattr(model, where, full)
        assert bench("--quick", "--dtype", "float32", "--method", "uniform", "--out", str(out)) == 1
        rows = load(out)
        assert rows[0]["model"].startswith("llava-1.5-7b") and rows[0]["gate"] == "failed: out of memory"
        assert list(by_case(rows)) == [("llava-next-7b (tiny)", 2)]

    def test_rounds_are_saved_as_they_end(self, monkeypatch, tmp_path):
        model, out = importlib.import_module("benchmarks.model"), tmp_path / "rows.csv"
        generate, runs = model.generate, []

        def interrupt(case, new, cut):
            runs.append(case.method)
            if len(runs) == 8:  # a warm-up, three for memory, a round of three, one of the next
                raise KeyboardInterrupt
            return generate(case, new, cut)

        monkeypatch.setattr(model, "generate", interrupt)
        with pytest.raises(KeyboardInterrupt):
            bench(
                "--quick",
                "--dtype",
                "float32",
                "--shape",
                "llava-1.5-7b",
                "--method",
                "uniform",
                "--repeats",
                "3",
                "--out",
                str(out),
            )
        rows = load(out)
        assert {(row["method"], row["repeats"]) for row in rows} == {
            ("unpruned", "1"), ("Uniform", "1"), ("smaller image", "1"),
        }  # fmt: skip

    def test_without_the_unpruned_model_there_is_no_table(self, made_up):
        rows = [row | {"p50_ms": ""} if row["method"] == "unpruned" else row for row in made_up]
        assert by_case(rows) == {}


class TestSmallerImage:
    @pytest.mark.parametrize("kind", ["llava", "llava_next"])
    def test_of_full_size_is_the_model_itself_and_shares_its_weights(self, kind):
        models = importlib.import_module("benchmarks.models")
        model = tiny(kind).model
        same = models.shrunk(model, models.side_of(model.config))
        batch = models.inputs(model, 2, 8, 0)
        with torch.no_grad():
            torch.testing.assert_close(same(**batch).logits, model(**batch).logits)
        own = [name for name, p in same.named_parameters() if p.data_ptr() != dict(model.named_parameters())[name].data_ptr()]
        assert len(own) == 1 and own[0].endswith("position_embedding.weight")

    def test_positions_are_those_of_transformers(self):
        models = importlib.import_module("benchmarks.models")
        model = tiny().model
        small = models.shrunk(model, 5)
        pixels = models.inputs(small, 1, 8, 0)["pixel_values"]
        with torch.no_grad():
            got = small.model.vision_tower(pixels).last_hidden_state
            want = model.model.vision_tower(pixels, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(got, want)

    def test_the_largest_within_a_budget(self):
        models = importlib.import_module("benchmarks.models")
        config = models.SHAPES["llava-1.5-7b"].config()
        assert [models.side_within(config, keep) for keep in models.published_keeps(config)] == [13, 11, 8]
        config = models.SHAPES["llava-next-7b"].config()
        assert models.published_keeps(config) == (640, 320, 160)
        assert [models.side_within(config, keep) for keep in (640, 320, 160)] == [11, 8, 5]


class TestCheckpoint:
    @pytest.mark.parametrize("kind", ["llava", "llava_next"])
    def test_runs_whole(self, tmp_path, kind):
        tiny(kind).model.save_pretrained(tmp_path / "model")
        out = tmp_path / "rows.csv"
        arguments = ("--method", "top-attention", "--keep", "6", "--concurrency", "1", "--repeats", "2", "--dtype", "float32")
        assert bench("--model", str(tmp_path / "model"), *arguments, "--out", str(out)) == 0
        rows = load(out)
        assert {row["method"] for row in rows} == {"unpruned", "TopAttention", "smaller image"}
        assert {row["model"] for row in rows} == {str(tmp_path / "model")}
        assert {(row["vision_depth"], row["vision_full"], row["text_depth"], row["text_full"]) for row in rows} == {
            ("2", "2", "1", "1")
        }
        assert {row["repeats"] for row in rows} == {"2"} and not any(row["stage"].endswith("_layers") for row in rows)

    def test_next_without_square_tiles(self, tmp_path):
        model = tiny("llava_next").model
        model.config.image_grid_pinpoints = [[112, 224]]
        model.save_pretrained(tmp_path)
        with pytest.raises(UsageError, match=r"--model: .* no image_grid_pinpoints of 224 x 224"):
            bench("--model", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "llava-2"], "argument --shape: 'llava-2' is unknown; choose from llava-1.5-7b, "),
        (["--method", "fastv"], "argument --method: 'fastv' is no method"),
        (["--keep", "64,x"], "argument --keep: 'x' is out of range; give numbers >= 1"),
        (["--concurrency", "0"], "argument --concurrency: '0' is out of range"),
        (["--repeats", "0"], "argument --repeats: 0 is too small"),
        (["--quick", "--keep", "65"], "argument --keep: 65 is more than the 64 visual tokens"),
        (["--quick", "--vision-layers", "1"], "argument --vision-layers: 1 is too small"),
        (["--quick", "--text-layers", "3"], "argument --text-layers: 3 is more than the 2 of llava-1.5-7b"),
        (["--model", "./nowhere"], "argument --model: the folder './nowhere' does not exist"),
        (["--model", "x", "--shape", "llava-1.5-7b"], "argument --model: a checkpoint has layers of its own"),
        (["--quick", "--out", "no/where.csv"], "argument --out: 'no/where.csv' is in a folder 'no' that does not exist"),
        (["--device", "tpu"], "argument --device: 'tpu' is no device"),
    ],
)
def test_errors_in_words(arguments, message):
    with pytest.raises(UsageError) as error:
        bench(*arguments)
    assert message in str(error.value)


def test_a_cpu_says_what_it_leaves_out(capsys):
    model = importlib.import_module("benchmarks.model")
    options = dict.fromkeys(("model", "shape", "keep", "concurrency", "vision_layers", "text_layers"))
    cells = model._cells(argparse.Namespace(**options, quick=False, device="cpu"))
    assert [(cell.shape, cell.concurrency, cell.smallest) for cell in cells] == [
        ("llava-1.5-7b", 1, False), ("llava-1.5-7b", 8, True), ("llava-1.5-7b", 32, True), ("llava-next-7b", 1, False),
    ]  # fmt: skip
    assert "leaves out concurrency 8 and 32 but" in capsys.readouterr().out
    cells = model._cells(argparse.Namespace(**options, quick=False, device="cuda"))
    assert [cell.concurrency for cell in cells] == [1, 8, 32] * 2 and not any(cell.smallest for cell in cells)


def rows_of(method, keep, selection, prefill, layers):
    """Of a model of which 1 of 4 and 1 of 10 layers were run."""
    times = {
        "vision": 30.0, "vision_layers": 20.0, "selection": selection, "projector": 1.0, "prefill": prefill,
        "prefill_layers": layers, "decode": 9.0, "other": 2.0, "first_token": 33.0 + selection + prefill, "total": 99.0,
    }  # fmt: skip
    for stage, time in times.items():
        yield {
            "model": "m", "method": method, "keep": keep, "concurrency": "1", "image": "336 px", "stage": stage,
            "p20_ms": time, "p50_ms": time, "p80_ms": time, "repeats": "3", "peak_bytes": 2**20, "tokens_before": "576",
            "tokens_after": keep or "576", "text_tokens": "48", "new_tokens": "4", "vision_depth": "1", "text_depth": "1",
            "vision_full": "4", "text_full": "10", "dtype": "float32", "threads": "2", "device": "cpu", "torch": "2",
            "time": "2026-01-01T00:00:00",
        }  # fmt: skip


@pytest.fixture
def made_up():
    return [
        *rows_of("unpruned", "", 0.0, 50.0, 40.0),
        *rows_of("Scope", "64", 2.0, 15.0, 10.0),
        *rows_of("Scope (published loop)", "64", 400.0, 15.0, 10.0),
    ]


def test_full_depth_is_extrapolated_from_the_layers_alone(made_up):
    base, ours, theirs = next(iter(by_case(made_up).values()))
    assert base.full("vision") == 30 + 3 * 20
    assert base.full("prefill") == 50 + 9 * 40 and ours.full("prefill") == 15 + 9 * 10
    assert ours.full("first_token") == 33 + 2 + 15 + 3 * 20 + 9 * 10
    assert ours.full("projector") == 1
    text = importlib.import_module("benchmarks.model").markdown(made_up)
    assert "1 of 4 layers of the tower and 1 of 10 of the language model were run" in text
    lines = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| 64")}
    assert "| 0.49% | +303 |" in lines["Scope"]  # 2 of 410; 410 - 105 - 2
    assert "| -95 |" in lines["Scope (published loop)"]
    assert "Choosing costs more than the prefill it saves: Scope (published loop) at 64." in text
    brief = importlib.import_module("benchmarks.model").markdown(
        [*made_up, *rows_of("PAR", "128", 500.0, 20.0, 15.0)], brief=True
    )
    assert "decode" not in brief and "PAR" not in brief and "loop) at 64." in brief
    assert theirs.kept == 64 and base.kept is None


def test_figure_has_a_panel_for_each_model(measured):
    figure = importlib.import_module("benchmarks.plots_model").draw(measured)
    assert [panel.get_title(loc="left") for panel in figure.axes] == [
        "llava-1.5-7b (tiny), 2 requests", "llava-next-7b (tiny), 2 requests",
    ]  # fmt: skip
    groups = by_case(measured)
    for panel, cases in zip(figure.axes, groups.values(), strict=True):
        assert [tick.get_text() for tick in panel.get_yticklabels()] == [case["method"] for case in cases]
        assert len(panel.patches) == 5 * len(cases)


def test_headline_is_few_cases(tmp_path):
    out = tmp_path / "rows.csv"
    assert bench("--quick", "--headline", "--dtype", "float32", "--out", str(out)) == 0
    ((key, cases),) = by_case(load(out)).items()
    assert key == ("llava-1.5-7b (tiny)", 1) and {case["new_tokens"] for case in cases} == {"8"}
    assert [case["method"] for case in cases] == [
        "unpruned", "Scope", "Scope (published loop)", "TopAttention", "smaller image",
    ]  # fmt: skip
