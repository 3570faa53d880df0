"""``vtkernels info --plan``: the launch plans of the CUDA kernels, printed without a GPU."""

from __future__ import annotations

import json

import pytest
from emulated import LAUNCHES

from vtkernels import _load
from vtkernels.cli import _plans, main

native = pytest.mark.skipif(_load.host() is None, reason=_load.why_no_host())


def test_ops_are_those_with_cuda_kernels():
    assert set(_plans.OPS) == set(LAUNCHES)


@native
def test_table_shows_every_op_and_launch(capsys):
    assert main(["info", "--plan", "576", "1024", "64"]) == 0
    text = capsys.readouterr().out
    assert "1 x 576 tokens, 1024 channels, 64 kept, 16 heads on sm_90 (H200: 132 multiprocessors, 227.0 KiB" in text
    for op in _plans.OPS:
        assert any(line.split()[:1] == [op] for line in text.splitlines()), op
    assert ("built without nvcc" in text) == (_load.build_info()["cuda"] is None)


@native
def test_json_is_what_the_planner_says(capsys):
    assert main(["info", "--plan", "2880", "1024", "320", "--arch", "80", "--batch", "4", "--json"]) == 0
    plans = json.loads(capsys.readouterr().out)
    assert (plans["arch"], plans["images"], plans["n"], plans["d"], plans["k"], plans["gpu"]) == (
        80,
        4,
        2880,
        1024,
        320,
        "A100",
    )
    for op in _plans.OPS:
        got = _load.host().plan(op, arch=80, images=4, n=2880, d=1024, k=320)
        assert plans["ops"][op] == {name: got[name] for name in ("path", "launches", "workspace")}


@native
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["5", "16", "6"], "k at most n"),
        (
            ["5", "16", "2", "--arch", "70"],
            "arch must be one of 80, 86, 89, 90, 100 (ten times the compute capability), got 70",
        ),
        (["5", "100", "2"], "D a multiple of the heads; got B = 1, N = 5, D = 100, H = 16"),
        (["0", "16", "0"], "at least one image, token and head"),
        (["5", "16", "2", "--batch", "0"], "at least one image"),
    ],
)
def test_wrong_sizes_are_one_line(capsys, arguments, message):
    assert main(["info", "--plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_without_the_library_the_reason_is_told(capsys, monkeypatch):
    monkeypatch.setattr(_load, "NATIVE", None)
    monkeypatch.setattr(_load, "WHY_NOT", "not built: no compiler")
    assert main(["info", "--plan", "5", "16", "2"]) == 2
    assert "which is missing: the native library is not in use: not built: no compiler" in capsys.readouterr().err


def test_help_has_an_example(capsys):
    assert main(["info", "--help"]) == 0
    assert "vtkernels info --plan 576 1024 64" in capsys.readouterr().out
