"""Fixtures of every test: the backend under test, and uninitialised memory that shows."""

import pytest
import torch
from cases import backends_of

import vtkernels as vt


def pytest_generate_tests(metafunc):
    """A file that names its ``OP`` runs each test that asks for ``backend`` on all backends of that op."""
    op = getattr(metafunc.module, "OP", None)
    if op is not None and "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends_of(op), indirect=True)


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
    """The loops of the reference are small library calls: on a busy machine their threads wait more than they work."""
    threads(1 if request.param == "reference" else 2)
    with vt.backend(request.param):
        yield request.param
