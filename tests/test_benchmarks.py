"""The benchmarks: every op has one, its gate is green, and the tables in the READMEs are those of the committed results."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import vtkernels as vt
from vtkernels._schemas import SCHEMAS

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def from_the_checkout(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.parametrize("op", SCHEMAS)
def test_gate_of_the_first_shape_is_green(op):
    case = next(iter(importlib.import_module(f"benchmarks.{op}").cases()))
    assert case.op == op and "vtkernels" in case.providers and len(case.providers) > 1
    case.gate()


@pytest.mark.parametrize("op", ["cls_attention", "scope_select", "compact_"])
def test_gate_in_half_precision_is_green(monkeypatch, op):
    inputs, harness = (importlib.import_module(f"benchmarks.{name}") for name in ("inputs", "harness"))
    monkeypatch.setattr(inputs, "dtype", torch.float16)
    case = harness.in_half(next(iter(importlib.import_module(f"benchmarks.{op}").cases())), "float16")
    assert case.dtype == "float16" and case.providers["vtkernels"].args[0].dtype == torch.float16
    case.gate()


def test_gate_in_half_precision_can_be_red(monkeypatch):
    harness, module = (importlib.import_module(f"benchmarks.{name}") for name in ("harness", "cls_attention"))
    case = harness.in_half(next(iter(module.cases())), "float16")
    monkeypatch.setattr(vt.reference, "cls_attention", lambda *given, **options: vt.cls_attention(*given, **options) + 1)
    with pytest.raises(AssertionError):
        case.gate()


def test_interpreted_triton_is_no_provider():
    harness = importlib.import_module("benchmarks.harness")
    case = next(iter(importlib.import_module("benchmarks.topk_select").cases()))
    assert harness.with_triton(case) is case


def test_red_gate_stops_the_timing():
    harness = importlib.import_module("benchmarks.harness")

    def gate():
        raise AssertionError("red")

    case = harness.Case("topk_select", {}, {"vtkernels": lambda: pytest.fail("timed on a red gate")}, gate)
    with pytest.raises(AssertionError, match="red"):
        harness.measure(case)


def test_pages_show_the_committed_results():
    harness, table = (importlib.import_module(f"benchmarks.{name}") for name in ("harness", "table"))
    rows = harness.load(harness.RESULTS / "cpu.csv")
    assert {row["op"].partition("(")[0] for row in rows} == set(SCHEMAS)
    for path, first_shapes in table.PAGES.items():
        page = path.read_text()
        assert page == table.with_table(page, table.markdown(rows, first_shapes=first_shapes)), (
            "run: python -m benchmarks --readme"
        )
