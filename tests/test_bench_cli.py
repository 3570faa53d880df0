"""``vtkernels bench``: the subcommand, what it writes, what a user can get wrong, and how it is packaged."""

from __future__ import annotations

import ast
import csv
import sys
from pathlib import Path

import pytest
import torch
from torch.overrides import _get_current_function_mode_stack

from vtkernels.cli import bench, main

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(benchmarks, threads, capsys):
    """Run ``python -m benchmarks``; returns code, stdout and stderr."""
    command = benchmarks("__main__").main

    def call(*arguments: str):
        code = command(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_forwards_everything(benchmarks, threads, capsys):
    assert main(["bench", "--help"]) == 0
    assert "ops" in (shown := capsys.readouterr().out) and "guard" in shown and "usage: vtkernels bench" in shown
    assert main(["bench", "ops", "--quick", "--op", "nothing"]) == 2
    assert "invalid choice: 'nothing'" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "vtkernels bench ops" in capsys.readouterr().out


def test_quick_prints_and_saves_nothing(run, benchmarks):
    before = {path: path.stat().st_mtime_ns for path in benchmarks("harness").RESULTS.iterdir()}
    code, out, err = run("ops", "--quick", "--op", "topk_select", "--seconds", "0.01")
    assert code == 0 and "memory copy floor" in out and "[1/1] topk_select, llava-1.5-7b: B 1, N 576, K 64" in err
    assert {path: path.stat().st_mtime_ns for path in benchmarks("harness").RESULTS.iterdir()} == before


def test_chosen_shapes_and_providers_to_a_file(run, tmp_path):
    out = tmp_path / "mine.csv"
    arguments = ("--op", "row_topk", "--shape", "llava-next-5-crops", "--provider", "published", "--seconds", "0.01")
    assert run("ops", *arguments, "--out", str(out))[0] == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["op"], row["shape"], row["provider"], row["B"]) for row in rows] == [
        ("row_topk", "llava-next-5-crops", name, "5") for name in ("vtkernels", "published")
    ]


def test_nothing_stands_between_a_call_and_torch(run, benchmarks, monkeypatch):
    """A default device is a mode that sees every call of torch in Python: small calls would be charged twice for it."""
    topk, seen = benchmarks("topk_select"), []
    call = topk._topk
    monkeypatch.setattr(topk, "_topk", lambda *given: (seen.append(_get_current_function_mode_stack()), call(*given))[1])
    assert run("ops", "--quick", "--op", "topk_select", "--seconds", "0.01")[0] == 0
    assert seen and not any(seen)


def test_a_red_gate_keeps_its_figures_and_fails(run, benchmarks, monkeypatch, tmp_path):
    harness, topk = benchmarks("harness"), benchmarks("topk_select")

    def disagree(got, ours):
        raise AssertionError("not the same")

    monkeypatch.setattr(topk, "_agree", disagree)
    arguments = ("ops", "--op", "topk_select", "--op", "row_topk", "--quick", "--seconds", "0.01")
    code, out, err = run(*arguments, "--out", str(tmp_path / "mine.csv"))
    assert code == 1 and "red gate: topk_select" in err and "torch.topk" in out
    rows = harness.load(tmp_path / "mine.csv")
    assert {row["op"] for row in rows} == {"topk_select", "row_topk"} and all(row["p50_ms"] for row in rows)
    gates = {row["gate"] for row in rows if row["op"] == "topk_select" and not row["provider"].endswith(" floor")}
    assert "red: not the same" in gates and all(gate.startswith("red: ") for gate in gates)


def test_a_case_that_raises_is_a_row_and_the_run_goes_on(run, benchmarks, monkeypatch, tmp_path):
    harness = benchmarks("harness")

    def broken(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmarks("topk_select"), "work", broken)
    arguments = ("ops", "--op", "topk_select", "--op", "row_topk", "--quick", "--seconds", "0.01")
    code, _, err = run(*arguments, "--out", str(tmp_path / "mine.csv"))
    assert code == 1 and "topk_select, B 1, N 576, K 64: vtkernels failed: out of memory" in err
    rows = harness.load(tmp_path / "mine.csv")
    assert [row["gate"] for row in rows if row["op"] == "topk_select"] == ["failed: out of memory"]
    assert any(row["op"] == "row_topk" and row["p50_ms"] for row in rows)


def test_the_file_is_whole_after_every_case(run, benchmarks, monkeypatch, tmp_path):
    harness, out = benchmarks("harness"), tmp_path / "mine.csv"

    def interrupt(*_):
        assert {row["op"] for row in harness.load(out)} == {"topk_select"}
        raise KeyboardInterrupt

    out.write_text("what was there before\n")
    monkeypatch.setattr(benchmarks("row_topk"), "work", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run("ops", "--op", "topk_select", "--op", "row_topk", "--quick", "--seconds", "0.01", "--out", str(out))
    assert {row["op"] for row in harness.load(out)} == {"topk_select"}


def test_committed_results_are_replaced_by_a_whole_green_run_alone(benchmarks, tmp_path):
    sheet, path = benchmarks("sheet").Sheet, tmp_path / "cpu.csv"
    path.write_text("before\n")
    for good in (False, True):
        made = sheet(path, ["a"], committed=True)
        made.add([{"a": 1}])
        assert path.read_text() == "before\n" and (tmp_path / "cpu.partial.csv").read_text().split() == ["a", "1"]
        assert made.close(good=good) == (path if good else tmp_path / "cpu.partial.csv")
    assert path.read_text().split() == ["a", "1"] and not (tmp_path / "cpu.partial.csv").exists()
    assert sheet(None, ["a"]).close() is None


def test_a_run_goes_on_where_it_stopped(run, benchmarks, tmp_path):
    out = tmp_path / "mine.csv"
    arguments = ("ops", "--op", "topk_select", "--op", "row_topk", "--quick", "--seconds", "0.01", "--out", str(out))
    assert run(*arguments)[0] == 0
    before = benchmarks("harness").load(out)
    code, _, err = run(*arguments, "--start", "2")
    assert code == 0 and "[2/2] row_topk" in err and "[1/2]" not in err
    assert benchmarks("harness").load(out)[: len(before)] == before


def test_headline_is_the_cases_with_targets_and_few_more(benchmarks):
    ops, headline = benchmarks("ops"), benchmarks("headline")
    todo = [(case.op, case.sizes) for case in ops.headlines(None)]
    assert len(todo) == 11 and [case for case in todo if case[0] == "scope_select"] == [
        ("scope_select", {"B": b, "N": 576, "D": 1024, "K": k}) for b, k in ((1, 64), (1, 192), (64, 64), (5, 64))
    ]
    assert all((op, sizes) in todo for op, sizes, _ in headline.TARGETS)
    assert [(case.op, case.sizes["K"]) for case in ops.headlines(["crop_topk"])] == [("crop_topk", 64)]


def test_headline_times_no_reference_and_prints_targets(run, benchmarks, tmp_path):
    headline, out = benchmarks("headline"), tmp_path / "mine.csv"
    arguments = ("--headline", "--op", "topk_select", "--dtype", "float16", "--seconds", "0.01", "--out", str(out))
    assert run("ops", *arguments)[0] == 0
    rows = benchmarks("harness").load(out)
    assert "reference" not in {row["provider"] for row in rows} and "vtkernels" in {row["provider"] for row in rows}
    assert list(headline.verdicts(rows)) == []  # a CPU has none
    row = next(row for row in rows if row["provider"] == "vtkernels") | {"timing": "device", "launch": "graph"}
    found = [(measured, limit, met) for _, measured, limit, met in headline.verdicts([row | {"p50_ms": "0.00350"}])]
    assert found == [(pytest.approx(3.5), 4, True)]
    assert [met for *_, met in headline.verdicts([row | {"p50_ms": "0.00410"}])] == [False]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "llava"), "argument --shape: 'llava' is no shape; choose from llava-1.5-7b"),
        (("--seconds", "0"), "argument --seconds: 0 is too small; give a number > 0"),
        (("--threads", "0"), "argument --threads: 0 is too small; give a number >= 1"),
        (("--device", "cuda:99"), "argument --device: 'cuda:99' is not there"),
        (
            ("--out", "nowhere/x.csv"),
            "argument --out: 'nowhere/x.csv' is in a folder 'nowhere' that does not exist",
        ),
        (
            ("--headline",),
            "argument --headline: its cases have shapes of their own; leave out --shape, --all-shapes and --quick",
        ),
        (("--start", "2"), "argument --start: 2 is out of range; give 1 to 1"),
        (("--start", "0"), "argument --start: 0 is too small; give a number >= 1"),
        (("--provider", "magic", "--seconds", "0.01"), "argument --provider: 'magic' timed nothing"),
    ],
)
def test_what_a_user_can_get_wrong(run, arguments, words):
    code, _, err = run("ops", "--quick", "--op", "row_topk", *arguments)
    assert code == 2 and words in err


def test_list_names_every_shape(run, benchmarks):
    code, out, _ = run("ops", "--list")
    assert code == 0 and all(shape.name in out and shape.source in out for shape in benchmarks("registry").SHAPES)


def test_the_package_is_installed_with_vtkernels(monkeypatch):
    """setup.py maps vtkernels.benchmarks onto the folder; all its imports are relative, so that both names work."""
    import setuptools

    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **options: given.update(options))
    monkeypatch.chdir(ROOT)
    exec(compile((ROOT / "setup.py").read_text(), str(ROOT / "setup.py"), "exec"), {"__file__": str(ROOT / "setup.py")})
    assert given["package_dir"] == {"vtkernels.benchmarks": "benchmarks"}
    folders = {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in (ROOT / "vtkernels").rglob("__init__.py")}
    assert set(given["packages"]) == folders | {"vtkernels.benchmarks"}


def imports(folder: str) -> dict[Path, set[str]]:
    """Absolute imports of every file below."""
    found = {}
    for path in (ROOT / folder).rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found[path] = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        found[path] |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module}
    return found


def test_arrows_point_one_way():
    for path, names in (imports("vtkernels") | imports("benchmarks")).items():
        assert not any(name.split(".")[0] == "benchmarks" or name.startswith("vtkernels.benchmarks") for name in names), path


def test_someone_elses_package_of_the_name_is_not_taken(monkeypatch, tmp_path, capsys):
    if bench.package() != "benchmarks":
        pytest.skip("vtkernels.benchmarks is installed here, nothing else is looked for")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["bench", "ops"]) == 2
    assert "no benchmarks found with vtkernels" in capsys.readouterr().err
