"""Fixtures of every test: the backend under test, and uninitialised memory that shows."""

import importlib
import os
import sys
from pathlib import Path

# Triton kernels run on CPU tensors in Triton's interpreter, which is chosen when Triton is first imported. Whatever needs
# compiled kernels runs in a process of its own.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from cases import backends_of, dtypes_of, slow
from emulated import GPUS, emulated
from hypothesis import HealthCheck, settings

import vtkernels as vt

if os.environ["TRITON_INTERPRET"] == "1" and vt.status("triton").available:
    from interpreter import speed_up

    speed_up()

# The same few examples every time, or with VTKERNELS_HYPOTHESIS=fuzz many, and others each time.
_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
settings.register_profile("few", max_examples=12, derandomize=True, **_COMMON)
settings.register_profile("fuzz", max_examples=200, **_COMMON)
settings.load_profile(os.environ.get("VTKERNELS_HYPOTHESIS", "few"))


def pytest_generate_tests(metafunc):
    """A file that names its ``OP`` runs each test that asks for ``backend`` on all backends of that op."""
    op = getattr(metafunc.module, "OP", None)
    if op is not None and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends_of(op), indirect=True)


def distinct(value) -> tuple:
    """Tells parameters apart: by value where that is plain, else by identity."""
    plain = isinstance(value, bool | int | float | str | tuple | torch.dtype | None)
    return type(value), repr(value) if plain else id(value)


def pytest_collection_modifyitems(config, items):
    """Thins what runs in Triton's interpreter and in the emulator, which are slow; what is left out is counted as deselected.

    Left out: tests marked ``large``; rows of more than 151 tokens; float64, which the kernels refuse; and of the parameters of
    a test, combinations none of whose values is new. So every value runs, but not every product of them. Without
    ``VTKERNELS_TEST_KERNELS=1`` (``make test-kernels``) each test of an op runs once on each of them, and what is marked
    ``kernels`` does not run.
    """
    everything = os.environ.get("VTKERNELS_TEST_KERNELS") == "1"
    kept, left_out, seen, started = [], [], set(), set()
    for item in items:
        values = item.callspec.params if hasattr(item, "callspec") else {}
        backend = values.get("backend")
        if not slow(backend):
            (kept if everything or item.get_closest_marker("kernels") is None else left_out).append(item)
            continue
        test = item.nodeid.partition("[")[0], values.get("op"), backend
        places = {(*test, name, *distinct(value)) for name, value in values.items() if name not in ("op", "backend")}
        refused = (
            item.get_closest_marker("large") is not None
            or values.get("dtype") not in (None, *dtypes_of(backend))
            or any(isinstance(values.get(name), int) and values[name] > 151 for name in ("n", "t"))
            or (places and places <= seen)
            or (not everything and (test in started or "op" in values))
        )
        if not refused:
            started.add(test)
            seen |= places
        (left_out if refused else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory():
    """``torch.empty`` gives NaN and the greatest integer, so that an element nobody wrote fails the comparison."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(8).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """``torch.set_num_threads``, undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def backend(request, threads):
    """Reference and interpreter are loops of small library calls: on a busy machine their threads wait more than they work."""
    threads(2 if request.param == "native" else 1)
    with emulated(*GPUS[request.param]) if request.param in GPUS else vt.backend(request.param):
        yield request.param


@pytest.fixture
def benchmarks(monkeypatch):
    """Imports modules of benchmarks/ from the checkout, and forgets them at the end."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
        del sys.modules[name]
