"""``bench guard``: passes, fails where an op became slow, and says so where the machine cannot be measured on."""

from __future__ import annotations

import json

import pytest
import torch

import vtkernels as vt
from vtkernels import backends
from vtkernels._schemas import SCHEMAS

ARGUMENTS = ("guard", "--op", "topk_select", "--seconds", "0.02")


@pytest.fixture
def guard(benchmarks, monkeypatch, threads):
    """The module on a quiet machine of the right kind."""
    threads(1)
    module = benchmarks("guard")
    monkeypatch.setattr(module, "check_quiet", lambda: None)
    monkeypatch.setattr(module, "check_kind", lambda known: None)
    return module


@pytest.fixture
def run(benchmarks, guard, capsys):
    def call(*arguments: str):
        code = benchmarks("__main__").main(list(arguments))
        return code, capsys.readouterr().out

    return call


def set_floors(guard, monkeypatch, tmp_path, *, here=True, **ratios):
    path = tmp_path / "floors.json"
    device = guard.environment(torch.device("cpu"))["device"] if here else "another processor"
    path.write_text(json.dumps({"capability": "AVX2", "device": device, "ratios": ratios}))
    monkeypatch.setattr(guard, "FILE", path)


def test_passes_above_the_floor(run, guard, monkeypatch, tmp_path):
    set_floors(guard, monkeypatch, tmp_path, topk_select={"torch.topk": 0.001})
    code, out = run(*ARGUMENTS)
    assert code == 0 and "guard: passed: 1 ratios of 1 ops" in out


def test_a_slow_op_fails_and_is_named(run, benchmarks, guard, monkeypatch, tmp_path):
    topk, build = benchmarks("topk_select"), benchmarks("topk_select").work

    def slow(*sizes):
        work = build(*sizes)
        call = work.providers["vtkernels"]
        work.providers["vtkernels"] = lambda: (sum(range(100_000)), call())[1]
        return work

    monkeypatch.setattr(topk, "work", slow)
    set_floors(guard, monkeypatch, tmp_path, topk_select={"torch.topk": 0.5})
    code, out = run(*ARGUMENTS)
    assert code == 1 and "guard: FAILED: topk_select: torch.topk / vtkernels is 0.0" in out and "the floor 0.30" in out


def test_a_red_gate_fails(run, benchmarks, guard, monkeypatch, tmp_path):
    def disagree(got, ours):
        raise AssertionError("not the same")

    monkeypatch.setattr(benchmarks("topk_select"), "_agree", disagree)
    set_floors(guard, monkeypatch, tmp_path, topk_select={"torch.topk": 0.001})
    code, out = run(*ARGUMENTS)
    assert code == 1 and "guard: FAILED: topk_select" in out and "not the same" in out


@pytest.mark.parametrize(("ratio", "code"), [(0.25, 0), (0.15, 1)])
def test_another_processor_has_a_wider_margin(run, guard, monkeypatch, tmp_path, ratio, code):
    monkeypatch.setattr(guard, "ratios", lambda case, seconds: {"torch.topk": ratio})
    set_floors(guard, monkeypatch, tmp_path, here=False, topk_select={"torch.topk": 1.0})
    got, out = run(*ARGUMENTS)
    assert got == code and ("at 20% of those of another processor" if code == 0 else "the floor 0.20") in out


def test_a_violation_must_be_seen_twice(run, guard, monkeypatch, tmp_path):
    seen = iter([0.1, 0.9])
    monkeypatch.setattr(guard, "ratios", lambda case, seconds: {"torch.topk": next(seen)})
    set_floors(guard, monkeypatch, tmp_path, topk_select={"torch.topk": 1.0})
    assert run(*ARGUMENTS)[0] == 0


@pytest.mark.parametrize("quiet_before", [0, 1, 2])
def test_noise_skips_visibly_before_and_after(run, guard, monkeypatch, tmp_path, quiet_before):
    """Also where it shows only once a violation has been seen: then the violation means nothing."""
    calls = []

    def check():
        calls.append(None)
        if len(calls) > quiet_before:
            raise guard.Noisy("p80 / p20 of one torch.mm is 3.00, the limit is 1.3")

    monkeypatch.setattr(guard, "check_quiet", check)
    monkeypatch.setattr(guard, "ratios", lambda case, seconds: {"torch.topk": 0.1})
    set_floors(guard, monkeypatch, tmp_path, topk_select={"torch.topk": 1.0})
    code, out = run(*ARGUMENTS)
    assert code == 0 and out == "guard: SKIPPED: p80 / p20 of one torch.mm is 3.00, the limit is 1.3\n"


def test_what_counts_as_noise(benchmarks, monkeypatch):
    guard = benchmarks("guard")
    monkeypatch.setattr(guard, "busy_share", lambda: 0.1)
    monkeypatch.setattr(guard, "product_spread", lambda: 1.1)
    guard.check_quiet()
    monkeypatch.setattr(guard, "product_spread", lambda: 1.5)
    with pytest.raises(guard.Noisy, match=r"p80 / p20 of one torch\.mm is 1\.50, the limit is"):
        guard.check_quiet()
    monkeypatch.setattr(guard, "busy_share", lambda: 0.95)
    with pytest.raises(guard.Noisy, match="others keep 95% of the cores busy"):
        guard.check_quiet()


def test_another_kind_of_machine_is_no_failure(benchmarks, monkeypatch):
    guard = benchmarks("guard")
    monkeypatch.setattr(vt, "status", lambda *names: backends.Status(True))
    with pytest.raises(guard.Noisy, match="the floors were taken with NEON"):
        guard.check_kind({"capability": "NEON"})
    monkeypatch.setattr(vt, "status", lambda *names: backends.Status(False, "not built"))
    with pytest.raises(guard.Noisy, match="the native library is not here: not built"):
        guard.check_kind({})


def test_the_machine_is_looked_at(benchmarks):
    guard = benchmarks("guard")
    assert guard.busy_share(seconds=0.05) >= 0
    assert guard.product_spread(seconds=0.05) >= 1


def test_write_keeps_the_smallest_of_three_runs(run, guard, monkeypatch, tmp_path):
    values = iter([3.0] * len(SCHEMAS) + [12.3456] * len(SCHEMAS) + [2.34567] * len(SCHEMAS))
    monkeypatch.setattr(guard, "FILE", tmp_path / "floors.json")
    monkeypatch.setattr(guard, "ratios", lambda case, seconds: {"published": next(values)})
    assert run("guard", "--write")[0] == 0
    facts = guard.committed()
    assert facts["ratios"] == {op: {"published": 2.346} for op in SCHEMAS} and facts["machine"] and facts["commit"]
    monkeypatch.setattr(guard, "ratios", lambda case, seconds: {"published": 2.0})
    assert run(*ARGUMENTS)[0] == 0


def test_noise_writes_nothing(run, guard, monkeypatch, tmp_path):
    def noisy():
        raise guard.Noisy("busy")

    monkeypatch.setattr(guard, "check_quiet", noisy)
    monkeypatch.setattr(guard, "FILE", tmp_path / "floors.json")
    code, out = run("guard", "--write")
    assert code == 1 and out == "guard: NOT WRITTEN: busy\n" and not guard.FILE.exists()


def test_the_committed_floors_are_those_of_the_guarded_cases(benchmarks):
    guard = benchmarks("guard")
    known = guard.committed()
    assert list(known["ratios"]) == list(SCHEMAS) and known["machine"] and known["commit"]
    for op in ("topk_select", "row_topk", "compact_"):  # quick to build
        (case,) = guard.guarded([op])
        assert case.build().providers.keys() - {"vtkernels"} == known["ratios"][op].keys()
