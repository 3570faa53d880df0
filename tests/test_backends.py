"""Which backend runs, how it is chosen, and what importing the package does not do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from cases import backends_of, example, on_ops, run

import vtkernels as vt
from vtkernels import _load, reference
from vtkernels._schemas import SCHEMAS
from vtkernels.backends import BACKENDS


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    """``code`` in a fresh interpreter with only these settings of the package."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VTKERNELS_")}
    path = os.pathsep.join([str(Path(vt.__file__).parents[1]), clean.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def calls(monkeypatch):
    """Calls of the reference of topk_select, which tell it from any other backend."""
    seen, function = [], reference.topk_select

    def spy(*args, **kwargs):
        seen.append(threading.get_ident())
        return function(*args, **kwargs)

    monkeypatch.setattr(reference, "topk_select", spy)
    return seen


def test_reference_is_always_available():
    for device in ("cpu", "cuda"):
        assert vt.status("reference", device) == vt.backends.Status(True, "")


def test_status_has_a_reason_exactly_where_unavailable():
    for name in BACKENDS:
        for device in ("cpu", "cuda"):
            status = vt.status(name, device)
            assert bool(status.reason) is not status.available


def test_choice_is_restored():
    before = {op: vt.which(op) for op in SCHEMAS}
    with vt.backend("reference"):
        assert {vt.which(op) for op in SCHEMAS} == {"reference"}
        with vt.backend("auto"):
            assert {op: vt.which(op) for op in SCHEMAS} == {op: backends_of(op)[0] for op in SCHEMAS}
        assert {vt.which(op) for op in SCHEMAS} == {"reference"}
    assert {op: vt.which(op) for op in SCHEMAS} == before


def test_choice_is_restored_after_an_error():
    before = vt.which("topk_select")
    with pytest.raises(ZeroDivisionError), vt.backend("reference"):
        raise ZeroDivisionError
    assert vt.which("topk_select") == before


def test_choice_without_a_context_holds_until_the_next():
    with vt.backend("auto"):
        vt.backend("reference")
        assert vt.which("topk_select") == "reference"
        vt.backend("auto")
        assert vt.which("topk_select") == backends_of("topk_select")[0]


def test_choice_decides_what_runs(calls):
    arguments = example("topk_select")
    with vt.backend("reference"):
        vt.topk_select(**arguments)
        torch.ops.vtkernels.topk_select(**arguments)
        thread = threading.Thread(target=lambda: vt.topk_select(**arguments))
        thread.start()
        thread.join()
    assert len(calls) == 3
    assert calls[2] != calls[0]


@pytest.mark.skipif(backends_of("topk_select")[0] != "native", reason="the native library is not built")
def test_automatic_choice_prefers_native(calls):
    with vt.backend("auto"):
        vt.topk_select(**example("topk_select"))
    with vt.backend("native"):
        vt.topk_select(**example("topk_select"))
    assert calls == []


def test_choice_holds_for_graphs_compiled_before_it(calls):
    torch._dynamo.reset()
    compiled = torch.compile(lambda scores: vt.topk_select(scores, 3), backend="aot_eager", fullgraph=True)
    scores = example("topk_select")["scores"]
    compiled(scores)
    with vt.backend("reference"):
        before = len(calls)
        compiled(scores)
        assert len(calls) == before + 1


def test_request_that_cannot_run_says_why_and_changes_nothing(monkeypatch):
    monkeypatch.setattr(vt.backends, "_HAS_TRITON", False)
    before = {op: vt.which(op) for op in SCHEMAS}
    with pytest.raises(RuntimeError) as caught:
        vt.backend("triton")
    assert str(caught.value) == f"backend 'triton' cannot run here: {vt.status('triton').reason}"
    assert {op: vt.which(op) for op in SCHEMAS} == before
    run("topk_select", example("topk_select"))


@on_ops()
def test_explicit_choice_never_falls_back(op, backend):
    """An op that a chosen backend lacks says so. (The fixture chose ``backend``, which has it.)"""
    run(op, example(op))
    if vt.status("native").available and "native" not in backends_of(op):
        with vt.backend("native"), pytest.raises(RuntimeError, match=f"{op} has no native kernel on cpu"):
            run(op, example(op))


def test_unknown_names_are_errors_that_list_the_known():
    with pytest.raises(ValueError, match="backend must be one of auto, native, triton, reference, got 'cuda'"):
        vt.backend("cuda")
    with pytest.raises(ValueError, match="backend must be one of native, triton, reference, got 'auto'"):
        vt.status("auto")
    with pytest.raises(ValueError, match=r"op must be one of scope_select, .*, got 'top_k'"):
        vt.which("top_k")


def test_environment_chooses_the_backend():
    code = "import vtkernels as vt; print(vt.which('topk_select'), end='')"
    assert python(code, VTKERNELS_BACKEND="reference").stdout == "reference"
    wrong = python(code, VTKERNELS_BACKEND="fastest")
    assert wrong.returncode != 0
    assert "backend must be one of auto, native, triton, reference, got 'fastest'" in wrong.stderr


def test_native_library_can_be_switched_off():
    code = """
import torch, vtkernels as vt
print(vt.status("native").available, vt.status("native").reason, vt.which("topk_select"), sep="|")
print(vt.topk_select(torch.tensor([[1.0, 3.0, 2.0]]), 2).tolist())
vt.backend("native")
"""
    result = python(code, VTKERNELS_NATIVE="0")
    assert result.stdout.splitlines() == ["False|switched off by VTKERNELS_NATIVE=0|reference", "[[1, 2]]"]
    assert "RuntimeError: backend 'native' cannot run here: switched off by VTKERNELS_NATIVE=0" in result.stderr


def test_import_is_light_and_leaves_cuda_alone():
    code = """
import sys, torch
before = set(sys.modules)
import vtkernels
for name in sorted({name.partition(".")[0] for name in sys.modules.keys() - before}):
    print(name)
print(torch.cuda.is_initialized())
"""
    lines = python(code).stdout.splitlines()
    assert lines[-1] == "False"
    outside = {name for name in lines[:-1] if name not in sys.stdlib_module_names}
    assert outside <= {"vtkernels", "torch"}


def test_missing_library_is_a_reason_not_an_import_error(monkeypatch, tmp_path):
    monkeypatch.delenv("VTKERNELS_NATIVE", raising=False)
    monkeypatch.setattr(_load, "_FOLDER", tmp_path)
    path, reason = _load._load()
    assert path is None
    assert reason.startswith("not built: no libvtkernels_torch in ")


def test_broken_library_is_a_reason_that_names_the_loader_error(monkeypatch, tmp_path):
    (tmp_path / "libvtkernels_torch.so").write_bytes(b"not a library")
    monkeypatch.delenv("VTKERNELS_NATIVE", raising=False)
    monkeypatch.setattr(_load, "_FOLDER", tmp_path)
    path, reason = _load._load()
    assert path is None
    assert reason.startswith(f"libvtkernels_torch.so does not load under torch {torch.__version__}: ")
