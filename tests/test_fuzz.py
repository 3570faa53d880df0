"""A short run of the fuzzer, and what the fuzzer must notice: wrong answers, crashes and hangs, each named by its call."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from cases import run
from fuzz import calls, judge, watch
from fuzz.agreement import assert_agrees
from fuzz.calls import Call, draw
from fuzz.judge import Memory

import vtkernels as vt
from vtkernels._schemas import SCHEMAS

TESTS = Path(__file__).parent
needs_native = pytest.mark.skipif(not vt.status("native").available, reason="the native library is not built")


def fuzz(*options: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    search = os.pathsep.join([str(Path(vt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, TESTS / "fuzz", *options],
        env={**os.environ, "PYTHONPATH": search, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=300,
    )


@needs_native
def test_two_thousand_calls_hold():
    result = fuzz("--calls", "2000", "--workers", "1")
    assert result.stdout.splitlines()[-1].startswith("2,000 calls, 0 failed, "), result.stdout + result.stderr
    assert result.returncode == 0


# ------------------------------------------------------------------------------------------------ the draw


def test_every_op_is_drawn_good_and_bad():
    drawn = [draw(0, i) for i in range(1500)]
    assert {call.op for call in drawn if call.broken} == {call.op for call in drawn if not call.broken} == set(SCHEMAS)
    assert {layout for call in drawn for layout in call.layouts.values()} == set(calls.LAYOUTS)
    assert any(call.out is not None and call.broken is None for call in drawn)


def test_a_call_can_be_drawn_again():
    first, again = draw(3, 77), draw(3, 77)
    assert str(first) == str(again)
    for name, value in first.arguments.items():
        same = torch.equal(value.isnan(), again.arguments[name].isnan()) if isinstance(value, torch.Tensor) else None
        assert same if same is not None else value == again.arguments[name]


def test_negative_strides_do_not_exist():
    """What numpy has and torch refuses before any op sees it; a reversed view is a copy."""
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ValueError, match="negative"):
        torch.from_numpy(numpy.zeros((2, 5))[:, ::-1])
    assert min(torch.zeros(2, 5).flip(1).stride()) > 0


# ------------------------------------------------------------------------------------------------ the judge


def wrong(change):
    """The ops as they are, but for what ``change`` does to the first result where there is data."""

    def answers(op, arguments):
        first, *others = run(op, arguments)
        return first if first.is_meta else change(first.clone()), *others

    return answers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x.fill_(x.max()), "chosen twice"),
        (lambda x: x.fill_(99), r"outside \[-1, valid\)"),
        (lambda x: x.flip(1), "not ascending"),
        (lambda x: torch.cat([x[:, :1] * 0 - 1, x[:, 1:]], 1), "-1 before the end"),
        (lambda x: x[:, 1:], None),
        (lambda x: x.int(), None),
        (lambda x: (x + 1) % 9, None),
    ],
)
def test_wrong_answers_are_noticed(monkeypatch, change, words):
    call = Call("topk_select", {"scores": torch.arange(9.0).expand(2, 9), "k": 4, "lengths": None, "sort": True})
    judge.judge(call)
    monkeypatch.setattr(judge, "run", wrong(change))
    with pytest.raises(AssertionError, match=words):
        judge.judge(call)


def test_a_refusal_of_a_good_call_and_the_acceptance_of_a_bad_one_are_noticed(monkeypatch):
    good = {"scores": torch.zeros(2, 9), "k": 4, "lengths": None, "sort": True}
    judge.judge(Call("topk_select", {**good, "k": 10}, broken="k"))
    with pytest.raises(AssertionError, match="a good call was refused"):
        judge.judge(Call("topk_select", {**good, "k": 10}))
    monkeypatch.setattr(judge, "_call", lambda call, direct=False: None)
    with pytest.raises(AssertionError, match="accepted, though"):
        judge.judge(Call("topk_select", {**good, "k": 10}, broken="k"))


@pytest.mark.parametrize("op", [op for op in SCHEMAS if op != "compact_"])
def test_disagreement_with_the_reference_is_noticed(op):
    """Of calls with a good answer that is then changed: indices by a place, scores by a hundredth."""
    noticed = []
    for call in (call for i in range(60) if not (call := draw(1, i, op)).broken):
        arguments = {**call.arguments, **({"sort": False} if "sort" in call.arguments else {})}
        results = run(op, arguments)
        assert_agrees(op, arguments, results)
        changed = tuple(0.99 * x - 0.01 if x.is_floating_point() else x.roll(1, 1) for x in results)
        try:
            assert_agrees(op, arguments, changed)
        except AssertionError:
            noticed.append(call)
    assert len(noticed) > 5


def test_writes_around_a_result_and_into_an_input_are_noticed():
    buffer = torch.zeros(20)
    memory = Memory({"out": buffer[4:8], "x": torch.zeros(3)})
    buffer[4:8] = 1
    memory.assert_unchanged(written="out")
    with pytest.raises(AssertionError, match="memory of out changed"):
        memory.assert_unchanged()
    buffer[8] = 1
    with pytest.raises(AssertionError, match="memory of out changed around its elements"):
        memory.assert_unchanged(written="out")


# ------------------------------------------------------------------------------------------------ the watch


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "died with signal 11"),
        ("time.sleep(60)", "died with exit code 1 .a hang"),
        ("raise AssertionError('not so')", "topk_select, .*, AssertionError: not so"),
    ],
)
def test_crash_hang_and_failure_are_named_and_the_others_still_made(tmp_path, monkeypatch, capfd, fault, words):
    code = f"""
        import os, signal, time

        def judge(call):
            if call.op == "topk_select":
                {fault}
    """
    (tmp_path / "planted.py").write_text(textwrap.dedent(code))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    bad = [i for i in range(30) if draw(0, i).op == "topk_select"][:1]
    share = watch.Share(seed=0, first=0, step=1, calls=bad[0] + 3, hang_seconds=2, judge="planted")
    *_, tally = watch.run([share])
    assert (tally.done, tally.failed) == (share.calls, 1)
    printed = capfd.readouterr().out
    assert re.search(rf"^python -m tests.fuzz --seed 0 --call {bad[0]}  # .*{words}", printed, re.MULTILINE), printed


def test_one_call_again():
    result = fuzz("--seed", "3", "--call", "41")
    assert result.returncode == 0, result.stderr
    assert draw(3, 41).op in result.stdout
