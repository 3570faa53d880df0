"""``vtkernels bench``: the subcommand, what it writes, what a user can get wrong, and how it is packaged."""

from __future__ import annotations

import ast
import csv
import sys
from pathlib import Path

import pytest
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


def test_a_red_gate_leaves_no_figure_and_fails(run, benchmarks, monkeypatch, tmp_path):
    harness, topk = benchmarks("harness"), benchmarks("topk_select")

    def disagree(got, ours):
        raise AssertionError("not the same")

    monkeypatch.setattr(topk, "_agree", disagree)
    arguments = ("ops", "--op", "topk_select", "--op", "row_topk", "--quick", "--seconds", "0.01")
    code, out, err = run(*arguments, "--out", str(tmp_path / "mine.csv"))
    assert code == 1 and "red gate: topk_select" in err and "torch.topk" not in out
    assert {row["op"] for row in harness.load(tmp_path / "mine.csv")} == {"row_topk"}


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
