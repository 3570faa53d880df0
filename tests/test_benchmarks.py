"""The benchmarks: every op has one, its gate is green and can be red, and the pages are those of the committed results."""

from __future__ import annotations

import importlib
from functools import partial

import pytest
import torch

import vtkernels as vt
from vtkernels._schemas import SCHEMAS
from vtkernels.cli._errors import UsageError

PLACE = ("threads", "device", "machine", "python", "torch", "triton", "cuda", "driver", "vtkernels", "commit", "time")


@pytest.fixture
def first(benchmarks, threads):
    """The first case of an op at a shape that takes no time."""
    threads(1)
    tiny = benchmarks("registry").Shape("tiny", 2, 1, 144, 12, 64, 4, 16, True, 96, (32,), "made up")
    return lambda op: next(iter(benchmarks(op).cases([tiny])))


@pytest.fixture
def clock(benchmarks):
    return benchmarks("clock").Clock("cpu")


@pytest.mark.parametrize("op", SCHEMAS)
def test_gate_is_green(benchmarks, first, clock, op):
    harness, case = benchmarks("harness"), first(op)
    work = case.build()
    floors = [name for name in work.providers if name.endswith(harness.FLOOR)]
    assert case.op == op and case.shape and len(floors) == 1
    assert {"vtkernels", "reference"} < work.providers.keys() - set(floors)  # and what people run today
    gates = {name: timed.gate for name, timed in harness.gate(case, work, clock).items()}
    assert gates == {name: "" if name in floors else "same" for name in work.providers}


@pytest.mark.parametrize("op", SCHEMAS)
def test_every_provider_passes_the_gate_or_is_a_floor(benchmarks, first, clock, op):
    """A wrong result of any one of them turns the gate red."""
    harness, case = benchmarks("harness"), first(op)
    names = [name for name in case.build().providers if name != "vtkernels" and not name.endswith(harness.FLOOR)]
    for name in names:
        work = case.build()
        call = work.providers[name]
        spoilt = harness.Work(work.providers | {name: lambda call=call: spoil(harness.results(call))}, work.agree)
        gates = {other: timed.gate for other, timed in harness.gate(case, spoilt, clock).items()}
        assert gates[name].startswith("red: ") and gates["vtkernels"].startswith(f"red: {name}: ")


def spoil(results):
    return tuple(x.flip(-1) + 1 for x in results)


def test_cases_cost_nothing_and_each_is_there_once(benchmarks):
    ops, registry = benchmarks("ops"), benchmarks("registry")
    cases = list(ops.cases(SCHEMAS, registry.chosen(None, everything=True)))
    assert len({(case.op, *case.sizes.items()) for case in cases}) == len(cases) > 200
    values = {name: {case.sizes[name] for case in cases if name in case.sizes} for name in ("B", "N", "K")}
    assert {1, 16, 64} < values["B"] and {144, 576, 729, 1728, 2304, 2880} < values["N"] and {32, 64, 192, 640} < values["K"]
    assert all(case.shape in {shape.name for shape in registry.SHAPES} for case in cases)


def test_registry_is_consistent(benchmarks):
    registry = benchmarks("registry")
    names = [shape.name for shape in registry.SHAPES]
    assert len(set(names)) == len(names) and {*registry.DEFAULT, *registry.QUICK} < set(names)
    for shape in registry.SHAPES:
        assert shape.heads * shape.head_dim == shape.tower and shape.source
        assert shape.patches == shape.grid**2 and all(0 < k < shape.tokens for k in shape.keeps)
    with pytest.raises(UsageError, match=r"--shape: 'llava' is no shape; choose from llava-1\.5-7b"):
        registry.chosen(["llava"])


@pytest.mark.parametrize("op", ["cls_attention", "scope_select", "compact_"])
def test_gate_in_half_precision_is_green(monkeypatch, benchmarks, first, clock, op):
    harness = benchmarks("harness")
    monkeypatch.setattr(benchmarks("inputs"), "dtype", torch.float16)
    case = harness.in_half(first(op), "float16")
    work = case.build()
    assert case.dtype == "float16" and work.providers["vtkernels"].args[0].dtype == torch.float16
    gates = {name: timed.gate for name, timed in harness.gate(case, work, clock).items()}
    others = "same" if op == "compact_" else "not compared"  # what rounds as it goes chooses otherwise
    assert gates.pop("vtkernels") == gates.pop("reference") == "same"
    assert gates == {name: "" if name.endswith(harness.FLOOR) else others for name in gates}


def test_gate_in_half_precision_can_be_red(monkeypatch, benchmarks, first, clock):
    harness = benchmarks("harness")
    case = harness.in_half(first("cls_attention"), "float16")
    monkeypatch.setattr(vt.reference, "cls_attention", lambda *given, **options: vt.cls_attention(*given, **options) + 1)
    gates = harness.gate(case, case.build(), clock)
    assert gates["reference"].gate.startswith("red: ") and gates["vtkernels"].gate.startswith("red: reference: ")


def test_picks_are_compared_as_sets(benchmarks):
    """A near-tie shifts everything between two places of the sorted picks; it is one pick that differs."""
    same_picks = benchmarks("harness").same_picks
    ours = torch.arange(0, 128, 2)[None]
    other = torch.cat([ours[:, 1:], torch.tensor([[127]])], dim=1)
    same_picks(other.flip(1), ours, allowed=0.016)
    with pytest.raises(AssertionError, match=r"^1\.6% of the picks differ$"):
        same_picks(other, ours, allowed=0.01)
    with pytest.raises(AssertionError, match=r"^100\.0% of the picks differ$"):
        same_picks(torch.full((1, 4), 3), torch.tensor([[4, 5, 6, 7]]), allowed=0.02)
    with pytest.raises(AssertionError, match=r"^25\.0% of the picks differ$"):  # one twice instead of another
        same_picks(torch.tensor([[4, 5, 6, 6]]), torch.tensor([[4, 5, 6, 7]]), allowed=0.02)
    with pytest.raises(AssertionError, match="picks, not"):
        same_picks(ours[:, 1:], ours)
    same_picks(torch.tensor([[3, -1, -1]]), torch.tensor([[-1, 3, -1]]))


def test_labels_are_compared_place_by_place(benchmarks):
    near, labels = benchmarks("harness").near, torch.arange(100)[None]
    near((labels,), (labels,), op="token_clusters")
    with pytest.raises(AssertionError, match=r"100\.0% of the labels differ"):
        near((labels.roll(1),), (labels,), op="token_clusters")
    near((labels.roll(1),), (labels,), op="topk_select")


def test_interpreted_triton_is_no_provider(benchmarks, first):
    case = first("topk_select")
    assert benchmarks("harness").with_triton(case) is case


def test_a_red_gate_is_written_into_the_rows(benchmarks, clock):
    harness, mode = benchmarks("harness"), benchmarks("clock").Mode()

    def disagree(got, ours):
        raise AssertionError("red\nand more")

    work = harness.Work({name: partial(torch.zeros, 1, 1) for name in ("other", "vtkernels")}, disagree)
    rows = harness.measure(harness.Case("topk_select", {"N": 3}, lambda: work), clock, [mode], seconds=0.01)
    assert [(row["provider"], row["gate"], bool(row["p50_ms"])) for row in rows] == [
        ("other", "red: red", True), ("vtkernels", "red: other: red", True),
    ]  # fmt: skip
    assert harness.complaints(rows) == ["red gate: topk_select, N 3: vtkernels and others differ: other: red"]


def test_what_was_compared_with_nothing_is_red(benchmarks, clock):
    """Ours alone, or all others raise."""
    harness = benchmarks("harness")

    def broken():
        raise ValueError("no such shape")

    work = harness.Work({"vtkernels": partial(torch.zeros, 1, 1), "reference": broken}, lambda got, ours: None)
    gates = harness.gate(harness.Case("topk_select", {"N": 3}, lambda: work), work, clock)
    assert gates["reference"].gate == "failed: ValueError: no such shape" and gates["vtkernels"].gate == "red: not compared"
    work = harness.Work({"vtkernels": broken, "reference": partial(torch.zeros, 1, 1)}, lambda got, ours: None)
    gates = harness.gate(harness.Case("topk_select", {"N": 3}, lambda: work), work, clock)
    assert gates["reference"].gate == "not compared" and gates["vtkernels"].failed


def test_rows_are_tidy_and_say_where_they_were_taken(benchmarks, clock, first):
    harness, modes = benchmarks("harness"), benchmarks("clock").modes("cpu", cold=True)
    rows = harness.measure(first("topk_select"), clock, modes, seconds=0.01, only=["torch.topk"])
    assert [(row["provider"], row["timing"], row["cache"], row["launch"]) for row in rows] == [
        (name, "call", cache, "eager") for name in ("vtkernels", "torch.topk") for cache in ("warm", "cold")
    ]
    for row in rows:
        assert tuple(row) == harness.COLUMNS and tuple(row)[-len(PLACE) :] == PLACE
        assert 0 < float(row["p20_ms"]) <= float(row["p50_ms"]) <= float(row["p80_ms"]) and row["repeats"] >= 5
        assert (row["B"], row["N"], row["K"], row["D"]) == (2, 144, 32, "")
        assert row["backend"] == (vt.which("topk_select") if row["provider"] == "vtkernels" else "")
        assert row["machine"] and row["commit"] and row["time"] and not row["cuda"]


def test_a_gpu_is_timed_by_call_and_device_warm_and_cold_eager_and_as_a_graph(benchmarks):
    modes = benchmarks("clock").modes("cuda")
    assert {(mode.timing, mode.cache, mode.launch) for mode in modes} == {
        ("call", "warm", "eager"),
        ("finished", "warm", "eager"),
        *(("device", cache, launch) for cache in ("warm", "cold") for launch in ("eager", "graph")),
    }


def test_cold_means_that_more_than_the_last_cache_was_written(benchmarks, clock):
    clock.empty_caches()
    assert clock._spill.nbytes >= 2 * benchmarks("clock").last_cache(torch.device("cpu")) > 1 << 20


def test_a_commit_outside_a_checkout_is_unknown(monkeypatch, tmp_path, benchmarks):
    environment = benchmarks("environment")
    monkeypatch.setattr(vt, "__file__", str(tmp_path / "site-packages" / "vtkernels" / "__init__.py"))
    (tmp_path / "site-packages").mkdir()
    monkeypatch.delenv("VTKERNELS_COMMIT", raising=False)
    environment.commit.cache_clear()
    assert environment.commit() == "unknown"
    monkeypatch.setenv("VTKERNELS_COMMIT", "0123abc")
    environment.commit.cache_clear()
    assert environment.commit() == environment.environment(torch.device("cpu"))["commit"] == "0123abc"
    environment.commit.cache_clear()


@pytest.mark.parametrize("module", ["apricot", "submodlib"])
def test_peers_choose_the_same(benchmarks, module):
    """Where they are installed; elsewhere they are no providers."""
    pytest.importorskip(module)
    peers, cases = benchmarks("peers"), benchmarks("coverage_select")
    work = cases.facility_location(96, 12)
    name = {"apricot": "apricot-select", "submodlib": "submodlib-py"}[module]
    assert name in work.providers and name in peers.facility_location(work.providers["vtkernels"].args[0], 12)
    work.agree((work.providers[name](),), work.providers["vtkernels"]())


def test_peers_that_are_missing_are_no_providers(monkeypatch, benchmarks):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert benchmarks("peers").facility_location(torch.eye(4)[None], 2) == {}


def test_pages_show_the_committed_results(benchmarks):
    harness, pages = benchmarks("harness"), benchmarks("pages")
    rows = harness.load(harness.RESULTS / "cpu.csv")
    assert {row["op"].partition("(")[0] for row in rows} == set(SCHEMAS) and tuple(rows[0]) == harness.COLUMNS
    for path in {block.page for block in pages.BLOCKS}:
        assert path.read_text() == pages.written(path), "run: python -m benchmarks pages"


def test_plots_were_drawn_from_the_committed_results(benchmarks):
    pillow = pytest.importorskip("PIL.Image")
    harness, plots = benchmarks("harness"), benchmarks("plots")
    for plot in plots.PLOTS:
        with pillow.open(plots.DOCS / plot.picture) as picture:
            assert picture.text[plots.KEY] == plots.digest(harness.RESULTS / plot.source), "run: python -m benchmarks pages"


def test_a_plot_can_be_drawn_from_what_is_committed(benchmarks):
    pytest.importorskip("matplotlib")
    harness, plots = benchmarks("harness"), benchmarks("plots")
    for plot in (plots.PLOTS[0], plots.PLOTS[-1]):
        module = importlib.import_module(f"benchmarks.{plot.module}")
        drawn = module.draw(harness.load(harness.RESULTS / plot.source), **plot.options)
        assert drawn.axes
