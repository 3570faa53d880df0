"""``bench scaling``: exponents, verdicts, dropped points, memory in a process of its own."""

from __future__ import annotations

import csv

import pytest
import torch

from vtkernels.cli._stages import PeakMemory

MEASURABLE = not PeakMemory(torch.device("cpu")).reason


def points(power: float, start: float = 1.0) -> list[tuple[int, float]]:
    """Five points: constant below, growing with this power in the upper half."""
    return [(n, start * max(1, n / 400) ** power) for n in (100, 200, 400, 800, 1600)]


def test_the_exponent_is_that_of_the_upper_half(benchmarks):
    exponent = benchmarks("scaling").exponent
    assert exponent(points(2.0)) == pytest.approx(2.0)
    assert exponent(points(2.0)[::-1]) == pytest.approx(2.0)
    assert exponent(points(1.5, start=7.0)) == pytest.approx(1.5)
    assert exponent(points(2.0)[:1]) is None
    assert exponent([(1, 1.0), (2, 0.0), (4, 8.0)]) is None
    assert exponent([(1, 9.0), (2, 2.0), (4, 4.0)], least=2.0) is None


@pytest.mark.parametrize(
    ("ours", "floor", "faster"), [(2.0, 2.0, False), (2.1, 2.0, False), (2.3, 2.0, True), (1.0, 2.0, False)]
)
def test_what_grows_faster_than_its_floor_is_named(benchmarks, ours, floor, faster):
    scaling = benchmarks("scaling")
    rows = [
        {"op": "scope_select", "axis": "N", "quantity": "time", "provider": provider, "N": str(n), "p50_ms": str(value)}
        for provider, power in (("vtkernels", ours), ("torch.mm floor", floor))
        for n, value in points(power)
    ]
    (curve,) = scaling.fitted(rows)
    assert (curve.faster, "grows faster" in str(curve)) == (faster, faster)
    cell = f"{ours:.2f}"
    assert f"| {f'**{cell}**' if faster else cell} ({floor:.2f}) |" in scaling.markdown(rows)


@pytest.mark.parametrize("op", ["scope_select", "coverage_select", "graph_propagate", "attention_topk", "attention_profile",
                                "topk_select", "crop_topk", "token_clusters"])  # fmt: skip
def test_every_op_is_gated_and_has_a_floor(benchmarks, threads, op):
    threads(1)
    scaling, harness, clock = benchmarks("scaling"), benchmarks("harness"), benchmarks("clock")
    case = scaling._case(op, scaling.Point(N=48, K=8, B=2, D=128))
    work = case.build()
    ours, reference, floor = sorted(work.providers, key=lambda name: (name.endswith(harness.FLOOR), name == "reference"))
    assert (ours, reference) == ("vtkernels", "reference") and floor.endswith(harness.FLOOR)
    assert harness.gate(case, work, clock.Clock("cpu"))["vtkernels"].gate == "same"
    wrong = tuple(x.flip(-1) + 1 for x in harness.results(work.providers[ours]))
    spoilt = harness.Work(work.providers | {ours: lambda: wrong}, work.agree)
    assert harness.gate(case, spoilt, clock.Clock("cpu"))["vtkernels"].gate.startswith("red: reference: ")


def test_points_that_do_not_fit_are_named(benchmarks, monkeypatch):
    scaling = benchmarks("scaling")
    small, large = scaling.Point(N=1000), scaling.Point(N=4000)
    assert scaling.too_much("N", large, None, 10) == ""
    assert scaling.too_much("N", large, (small, 0.5), 10) == ""
    assert scaling.too_much("N", large, (small, 1.0), 10) == "about 16 s, more than --longest 10"
    monkeypatch.setattr(scaling, "available", lambda: 1 << 20)
    assert "its gate needs about" in scaling.too_much("N", large, None, 10)


@pytest.mark.skipif(not MEASURABLE, reason="this system does not let a process set its memory mark back")
def test_memory_is_what_a_call_needs_beyond_inputs_and_outputs(benchmarks, monkeypatch):
    scaling = benchmarks("scaling")
    size = 32 << 20
    kept = torch.zeros(size // 4)

    def work(point):
        providers = {
            "vtkernels": lambda: (torch.ones(size // 4) + 1, None)[0] if point.N > 144 else torch.ones(1),
            "memory copy floor": lambda: kept,
        }
        return benchmarks("harness").Work(providers, lambda got, ours: None)

    monkeypatch.setitem(scaling.SUBJECTS, "topk_select", scaling.Subject("N", work))
    needed = scaling.peak("topk_select", scaling.Point(N=576))
    assert needed["memory copy floor"] == size
    assert 0.9 * size < needed["vtkernels"] < 1.2 * size  # the ones; the sum is the output


@pytest.mark.skipif(not MEASURABLE, reason="this system does not let a process set its memory mark back")
def test_a_quick_run_to_a_file(benchmarks, threads, tmp_path, capsys):
    out = tmp_path / "scaling.csv"
    arguments = ["scaling", "--quick", "--op", "topk_select", "--axis", "N", "--threads", "1", "--seconds", "0.01"]
    assert benchmarks("__main__").main([*arguments, "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "topk_select time: N^" in shown.out and "[1/1] topk_select against N" in shown.err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2 and tuple(rows[0]) == benchmarks("scaling")._COLUMNS
    assert {(row["quantity"], row["provider"]) for row in rows} == {
        (quantity, provider) for quantity in ("time", "memory") for provider in ("vtkernels", "memory copy floor")
    }
    assert all(row["p50_ms"] if row["quantity"] == "time" else row["bytes"] for row in rows)
    assert all(row["machine"] and row["commit"] and row["time"] for row in rows)


def test_a_red_point_and_one_that_fails_are_rows_and_the_run_goes_on(benchmarks, threads, monkeypatch, tmp_path):
    scaling, topk, out = benchmarks("scaling"), benchmarks("topk_select"), tmp_path / "scaling.csv"

    def work(p):
        if p.N == 288:
            raise torch.OutOfMemoryError("out of memory")
        made = topk.work(p.B, p.N, p.K)
        if p.N == 576:
            made.providers["reference"] = lambda: torch.full((1, p.K), -1)
        return made

    monkeypatch.setitem(scaling.SUBJECTS, "topk_select", scaling.Subject("N", work))
    arguments = [
        "scaling",
        "--quick",
        "--op",
        "topk_select",
        "--axis",
        "N",
        "--threads",
        "1",
        "--seconds",
        "0.01",
        "--no-memory",
    ]
    assert benchmarks("__main__").main([*arguments, "--dtype", "float16", "--out", str(out)]) == 1
    rows = benchmarks("harness").load(out)
    assert {(row["N"], row["dtype"], row["gate"]) for row in rows if row["provider"] == "vtkernels"} == {
        ("144", "float16", "same"),
        ("288", "float16", "failed: out of memory"),
        ("576", "float16", "red: reference: 100.0% of the picks differ"),
    }
    (curve,) = scaling.fitted(rows)
    assert [n for n, _ in curve.ours] == [144, 576]


def test_a_lost_gpu_ends_the_run_with_what_there_is(benchmarks, threads, monkeypatch, tmp_path, capsys):
    scaling, out = benchmarks("scaling"), tmp_path / "scaling.csv"
    monkeypatch.setattr(scaling, "spoilt", lambda device: True)
    arguments = ["scaling", "--quick", "--op", "topk_select", "--threads", "1", "--seconds", "0.01", "--no-memory"]
    assert benchmarks("__main__").main([*arguments, "--out", str(out)]) == 1
    assert {row["N"] for row in benchmarks("harness").load(out)} == {"144"}
    assert "the rest was not measured" in capsys.readouterr().err
