"""The Triton backend as a whole: when Triton is imported, why it cannot run, its launch table, and what its kernels compile to.

What each kernel computes is in the file of its op, which runs on this backend too, in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Draw, example, run
from compile_triton import BUDGET, FIELDS, read_budget

import vtkernels as vt
from vtkernels import backends
from vtkernels import triton as kernels
from vtkernels._schemas import SCHEMAS
from vtkernels.cli import main, tune
from vtkernels.triton import KERNELS, _launch

pytest.importorskip("triton")
HERE = Path(__file__).parent
interpreted = pytest.mark.skipif(not _launch.interpreted(), reason="needs TRITON_INTERPRET=1")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that compiles kernels rather than interpreting them."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("VTKERNELS_", "TRITON_INTERPRET"))}
    path = os.pathsep.join([str(HERE.parent), str(HERE), clean.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**clean, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


# ------------------------------------------------------------------------------------------------ when it is there


def test_kernels_are_ops_and_have_a_file_each():
    assert set(KERNELS) <= set(SCHEMAS) and len(set(KERNELS)) == len(KERNELS)
    files = {path.stem for path in Path(kernels.__file__).parent.glob("*.py") if not path.stem.startswith("__")}
    assert {name for name in files if not (name.startswith("_") and name not in SCHEMAS)} == set(KERNELS)


def test_triton_is_imported_by_the_first_launch_and_not_before():
    code = """
import sys, torch
before = set(sys.modules)
import vtkernels as vt
def imported(): return "triton" in sys.modules
print(imported())
vt.status("triton"), vt.status("triton", "cuda"), [vt.which(op, "cuda") for op in vt.ops.__all__]
print(imported())
vt.topk_select(torch.ones(1, 3), 2)
vt.backend("triton")
print(imported())
print(vt.topk_select(torch.ones(1, 3), 2).tolist())
print(imported())
"""
    result = python("-c", code, TRITON_INTERPRET="1")
    assert result.stdout.split("\n")[:-1] == ["False", "False", "False", "[[0, 1]]", "True"], result.stderr


def test_without_the_interpreter_a_cpu_is_refused_with_the_reason():
    code = """
import torch, vtkernels as vt
print(vt.status("triton").available, vt.status("triton").reason, sep="|")
try:
    vt.backend("triton")
except RuntimeError as error:
    print(error)
else:
    vt.topk_select(torch.ones(1, 3), 2)
"""
    result = python("-c", code)
    lines = (result.stdout + result.stderr).strip().splitlines()
    assert lines[0] == "False|runs on CPU tensors only under TRITON_INTERPRET=1"
    assert "runs on CPU tensors only under TRITON_INTERPRET=1" in lines[-1]
    assert "cannot run here" in lines[-1] or "has no triton kernel on cpu" in lines[-1]  # no GPU; a GPU but CPU tensors


def test_missing_triton_is_a_reason(monkeypatch):
    monkeypatch.setattr(backends, "_HAS_TRITON", False)
    for device in ("cpu", "cuda"):
        assert vt.status("triton", device).reason.startswith("triton is not installed")


@pytest.mark.parametrize(("version", "reason"), [(None, "built without CUDA and ROCm"), ("13.0", "no driver or no device")])
def test_triton_without_a_driver_is_a_reason(monkeypatch, version, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    monkeypatch.setattr(torch.version, "hip", None)
    assert reason in vt.status("triton", "cuda").reason
    assert "triton" not in {vt.which(op, "cuda") for op in SCHEMAS}


def test_automatic_choice_on_a_gpu_is_native_then_triton_then_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with vt.backend("auto"):
        for op in SCHEMAS:
            want = "native" if backends._NATIVE[op, "cuda"] else "triton" if op in KERNELS else "reference"
            assert vt.which(op, "cuda") == want
            key = torch._C._dispatch_has_kernel_for_dispatch_key(f"vtkernels::{op}", "CUDA")
            assert key == (want != "reference")


@interpreted
def test_automatic_choice_leaves_float64_to_the_reference(monkeypatch):
    loaded, load = [], kernels.load
    monkeypatch.setattr(kernels, "load", lambda op: loaded.append(op) or load(op))
    kernel = backends._automatic_triton("topk_select")
    scores = torch.tensor([[1.0, 1 + 2**-52, 0.5]], dtype=torch.float64)
    assert kernel(scores, 1).tolist() == [[1]]
    assert loaded == []
    assert kernel(scores.float(), 1).tolist() == [[0]]
    assert loaded == ["topk_select"]


@interpreted
@pytest.mark.parametrize("op", KERNELS)
def test_float64_is_refused_by_name(op):
    arguments = example(op, dtype=torch.float64)
    name = next(name for name, x in arguments.items() if isinstance(x, torch.Tensor) and x.dtype == torch.float64)
    with vt.backend("triton"), pytest.raises(TypeError, match=f"vtkernels::{op}: {name} must be float32, .*, got float64"):
        run(op, arguments)


@interpreted
@pytest.mark.skipif(set(KERNELS) == set(SCHEMAS), reason="every op has a kernel")
def test_op_without_a_kernel_says_so():
    op = next(op for op in SCHEMAS if op not in KERNELS)
    with vt.backend("triton"), pytest.raises(RuntimeError, match=f"vtkernels::{op} has no triton kernel on cpu"):
        run(op, example(op))


# ------------------------------------------------------------------------------------------------ launch parameters


@pytest.fixture
def table(monkeypatch, tmp_path):
    """Put a table of the user's own before the committed one."""

    def write(content: dict | str) -> Path:
        path = tmp_path / "table.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        monkeypatch.setenv("VTKERNELS_TRITON_TABLE", str(path))
        forget()
        return path

    yield write
    monkeypatch.undo()
    forget()


def forget() -> None:
    _launch.tables.cache_clear()
    _launch._row.cache_clear()


CPU = torch.device("cpu")


def parameters(kernel: str, **shape: int) -> dict:
    """What the table decides."""
    chosen = _launch.parameters(kernel, CPU, **shape)
    assert chosen.pop("enable_fp_fusion") is True
    return chosen


def test_every_shape_has_a_row():
    (committed,) = _launch.tables()
    for arch, rows_of in committed.items():
        for kernel, rows in rows_of.items():
            assert "up_to" not in rows[-1], (arch, kernel)
            assert all(set(row) <= {"up_to", "use"} for row in rows)
            assert all({"num_warps", "num_stages"} <= set(row["use"]) for row in rows), (arch, kernel)
            assert kernel in committed["default"], (arch, kernel)


def test_first_row_that_covers_the_shape_decides():
    rows = _launch.tables()[0]["default"]["topk_select"]
    for row in rows[:-1]:
        n = row["up_to"]["n"]
        assert parameters("topk_select", n=n) == row["use"]
        assert parameters("topk_select", n=n + 1) != row["use"]
    assert parameters("topk_select", n=2**20) == rows[-1]["use"]


def test_own_table_comes_before_the_committed_one(table):
    use = {"num_warps": 1, "num_stages": 1}
    table({"interpreter": {"topk_select": [{"up_to": {"n": 9}, "use": use}]}})
    assert parameters("topk_select", n=9) == use
    assert parameters("topk_select", n=10) == _launch.tables()[1]["default"]["topk_select"][0]["use"]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "cannot read"),
        ([], "must be an object"),
        ({"sm_90": {"topk": []}}, "unknown kernel 'topk' under 'sm_90', known are .*topk_select"),
        ({"sm_90": {"topk_select": [{"use": {"num_warps": 1}}]}}, "must set num_stages, num_warps, got num_warps"),
    ],
)
def test_table_that_cannot_work_is_named(table, content, text):
    path = table(content)
    with pytest.raises(ValueError, match=f"VTKERNELS_TRITON_TABLE: .*{path.name}.*{text}|cannot read .*{path.name}"):
        parameters("topk_select", n=1)


def test_parameters_are_recorded_and_overridden():
    with _launch.recorded() as seen:
        before = parameters("topk_select", n=7)
        with _launch.override("topk_select", num_warps=1):
            assert parameters("topk_select", n=7) == {**before, "num_warps": 1}
    assert seen == {"topk_select": ({"n": 7}, {**before, "num_warps": 1})}
    assert parameters("topk_select", n=7) == before


@interpreted
def test_more_rows_than_an_int32_can_sum_are_refused():
    same = torch.ones(1, 40, 8)  # of 32 rows at once, the first step would lose 32 times a similarity of 2**26
    with _launch.override("greedy", ROWS=32):
        with pytest.raises(Exception, match="ROWS of at most 16"), vt.backend("triton"):
            vt.scope_select(same, None, 4)
        with vt.backend("triton"):  # sums of coverage_select are int64
            vt.coverage_select(same @ same.transpose(1, 2), None, 4)


# ------------------------------------------------------------------------------------------------ vtkernels tune


def test_tune_without_a_gpu_says_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["tune", "--output", str(tmp_path / "table.json")]) == 2
    assert f"nothing to tune here: triton on a GPU: {vt.status('triton', 'cuda').reason}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@interpreted
def test_tune_refuses_the_interpreter(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert main(["tune", "--output", str(tmp_path / "table.json")]) == 2
    assert "TRITON_INTERPRET is set" in capsys.readouterr().err


def test_tune_names_the_ops_it_knows(tmp_path, capsys):
    assert main(["tune", "--output", str(tmp_path / "table.json"), "--op", "gather"]) == 2
    assert "--op must be one of scope_select, " in capsys.readouterr().err


@interpreted
def test_tuned_table_is_read_back(table):
    """The search with a clock that likes few warps: it ends there, and the table it writes is what the launch takes."""
    scores = Draw().normal(1, 33)
    launch = kernels.load("topk_select")

    def clock(call) -> float:
        with _launch.recorded() as seen:
            call()
        return seen["topk_select"][1]["num_warps"]

    ((kernel, shape, before, best, gain),) = tune.tune(lambda: launch(scores, 5), clock)
    assert (kernel, shape, best["num_warps"], gain) == ("topk_select", {"n": 33}, 1, before["num_warps"])
    table({"interpreter": tune.table([(kernel, shape, best), (kernel, {"n": 99}, before)])})
    assert parameters("topk_select", n=33) == best
    assert parameters("topk_select", n=34) == parameters("topk_select", n=999) == before


@interpreted
def test_tuning_drops_parameters_that_change_a_result():
    def call():
        warps = parameters("topk_select", n=33)["num_warps"]
        return torch.tensor([0 if warps == 1 else 5])

    ((_, _, before, best, _),) = tune.tune(call, lambda call: parameters("topk_select", n=33)["num_warps"])
    assert before["num_warps"] == best["num_warps"] == 2


@interpreted
@pytest.mark.parametrize("refusal", ["ptxas", "resources", "passes"])
def test_tuning_skips_what_is_refused_with_a_word(refusal, capsys):
    from triton.runtime.errors import OutOfResources, PTXASError

    error = {
        "ptxas": PTXASError("ptxas fatal: too much shared data"),
        "resources": OutOfResources(2048, 1024, "threads"),
        "passes": RuntimeError("PassManager::run failed"),
    }[refusal]

    def call():
        if parameters("topk_select", n=33)["num_warps"] > 2:
            raise error
        return torch.zeros(1)

    ((_, _, before, best, _),) = tune.tune(call, lambda call: 1 / parameters("topk_select", n=33)["num_warps"])
    assert before["num_warps"] == best["num_warps"] == 2
    assert f"topk_select num_warps 2 -> 4: skipped: {str(error).splitlines()[0]}" in capsys.readouterr().err


@interpreted
def test_tuning_does_not_skip_other_errors():
    def call():
        if parameters("topk_select", n=33)["num_warps"] != 2:
            raise RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        list(tune.tune(call, lambda call: 1.0))


@interpreted
def test_table_holds_what_was_tuned_before_an_error(monkeypatch, tmp_path, capsys):
    """The second workload fails: the row of the first is on the disk."""
    scores, output = Draw().normal(1, 33), tmp_path / "table.json"
    broken = {"scores": scores, "k": None}
    good = [("topk_select", "N=33", {"scores": scores, "k": 5}), ("topk_select", "N=33 without k", broken)]
    monkeypatch.setattr(tune, "workloads", lambda ops, device: iter(good))
    monkeypatch.setattr(tune, "timed", lambda call: 1.0)
    monkeypatch.setattr(vt, "status", lambda *_: backends.Status(True))
    monkeypatch.setattr(_launch, "interpreted", lambda: False)
    monkeypatch.setattr(_launch, "architecture", lambda device: "interpreter")
    with pytest.raises(TypeError):
        tune.run(argparse.Namespace(op=None, output=output))
    use = _launch.tables()[0]["default"]["topk_select"][0]["use"]
    assert json.loads(output.read_text()) == {"interpreter": {"topk_select": [{"use": use}]}}


@pytest.mark.parametrize("op", KERNELS)
def test_every_kernel_has_workloads_that_its_op_accepts(op):
    for name, _, arguments in tune.workloads([op], torch.device("meta")):
        assert name == op
        run(op, arguments)


# ------------------------------------------------------------------------------------------------ what it compiles to


@pytest.mark.kernels
def test_kernels_compile_for_every_architecture_within_their_budget():
    """sm_80, sm_90 and sm_100 without a GPU. No spills; registers and shared memory as recorded for this version of Triton."""
    result = python(str(HERE / "compile_triton.py"))
    assert result.returncode == 0, result.stderr[-3000:]
    got = {(row["op"], row["build"], row["arch"]): row for row in csv.DictReader(io.StringIO(result.stdout))}
    (version,) = {row["triton"] for row in got.values()}
    budget = {(row["op"], row["build"], row["arch"]): row for row in read_budget() if row["triton"] == version}
    assert {op for op, _, _ in got} == set(KERNELS)
    assert got.keys() == budget.keys(), f"record the budget: python tests/compile_triton.py --write ({BUDGET.name})"
    over = []
    for key, row in got.items():
        assert set(row) == set(FIELDS)
        if row["spills"] != "0":
            over.append((*key, "spills", row["spills"]))
        over += [(*key, what, row[what]) for what in ("registers", "shared") if int(row[what]) > int(budget[key][what])]
    assert over == []


def test_budget_of_every_version_has_the_same_builds_without_spills():
    budget = read_budget()
    builds: dict[str, set[tuple[str, str, str]]] = {}
    for row in budget:
        builds.setdefault(row["triton"], set()).add((row["op"], row["build"], row["arch"]))
    assert set(builds) == {"3.6.0", "3.9.0"}
    assert builds["3.6.0"] == builds["3.9.0"]
    assert {row["spills"] for row in budget} == {"0"}


# ------------------------------------------------------------------------------------------------ on a GPU


@pytest.mark.kernels
def test_matrix_on_a_gpu_compiles_little():
    """A compilation takes a second: as many as these take half a minute on a processor each for the longest op."""
    result = python(str(HERE / "specializations.py"))
    assert result.returncode == 0, result.stderr
    counts = {op: int(count) for op, count in map(str.split, result.stdout.splitlines())}
    total = counts.pop("all")
    assert set(counts) == set(KERNELS)
    assert 0 < total == sum(counts.values()) <= 200
    assert max(counts.values()) <= 35


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("op", KERNELS)
def test_compiled_kernels_on_this_gpu(op):
    """Against the reference, batch-invariant, and replayed from a CUDA graph: ``gpu_triton.py``, in a process that compiles."""
    result = python(str(HERE / "gpu_triton.py"), op)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
