"""The CUDA half of the native library as it is built: architectures, resources of every kernel, and what it asks of the system.

Needs no GPU. That the library loads at all where torch has no CUDA is proved by every other test; ``make test-cuda-torch`` runs
the same file under a CUDA build of torch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import cuda_resources
import pytest
import torch
from cases import example, run
from emulated import LAUNCHES

import vtkernels as vt
from vtkernels import _load
from vtkernels._ops import qualified
from vtkernels._schemas import OUT

if _load.NATIVE is None:
    pytest.skip(str(_load.WHY_NOT), allow_module_level=True)
if _load.build_info()["cuda"] is None:
    wanted = os.environ.get("VTKERNELS_REQUIRE_NATIVE") == "1" and os.environ.get("VTKERNELS_BUILD_CUDA") != "0"
    assert not (wanted and shutil.which("nvcc")), "nvcc is installed, yet the library has no CUDA kernels: make clean build"
    pytest.skip("the native library was built without CUDA kernels (no nvcc)", allow_module_level=True)

needs_cuobjdump = pytest.mark.skipif(bool(cuda_resources.why_not()), reason=cuda_resources.why_not())
ARCHITECTURES = {"sm_80", "sm_90a", "sm_100"}


def shown(*command) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def measured():
    return cuda_resources.measured()


def test_build_info_names_toolkit_and_architectures():
    info = _load.build_info()
    assert re.match(r"\d+\.\d+", info["cuda"])
    assert info["cuda_architectures"]


@needs_cuobjdump
def test_library_holds_every_architecture_and_code_for_later_ones():
    listed = _load.build_info()["cuda_architectures"]
    if listed != "80-real 90a-real 100-real 100-virtual":
        pytest.skip(f"built for other architectures: {listed}")
    tool = cuda_resources.cuobjdump()
    # older tools print sm_90a without its letter
    found = set(re.findall(r"\.(sm_\d+)\w?\.cubin", shown(tool, "--list-elf", cuda_resources.library())))
    assert found == {name.rstrip("a") for name in ARCHITECTURES}
    assert set(re.findall(r"\.(sm_\w+)\.ptx", shown(tool, "--list-ptx", cuda_resources.library()))) == {"sm_100"}


@needs_cuobjdump
def test_no_kernel_spills_or_has_a_stack(measured):
    assert measured
    assert {kernel: stack for kernel, (_, stack) in measured.items() if stack} == {}


@needs_cuobjdump
def test_registers_keep_the_committed_budget(measured):
    """Above it, something has changed that the author should see: ``python tests/cuda_resources.py`` writes a new budget."""
    budget = cuda_resources.budget()
    known = {architecture for architecture, _ in budget}
    assert {key for key in measured if key[0] in known} == {key for key in budget if key[0] in {a for a, _ in measured}}
    assert {key: (got, budget[key]) for key, (got, _) in measured.items() if key in budget and got > budget[key]} == {}


def test_budget_covers_every_architecture_alike():
    kernels = {a: {k for b, k in cuda_resources.budget() if a == b} for a, _ in cuda_resources.budget()}
    assert set(kernels) == ARCHITECTURES
    assert len({frozenset(names) for names in kernels.values()}) == 1


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
@pytest.mark.parametrize("library", ["libvtkernels.so", "libvtkernels_torch.so"])
def test_needs_no_cuda_library_to_load(library):
    """The CUDA runtime is linked statically and finds the driver when it is first used."""
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", shown("readelf", "-d", _load.NATIVE.with_name(library)))
    assert needed
    assert not [name for name in needed if re.search(r"cuda|cudart|cublas|nvrtc|torch_python", name)]
    assert {name for name in needed if "torch" in name or "c10" in name} <= {"libtorch_cpu.so", "libc10.so"}


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_exports_no_symbol_of_the_cuda_runtime():
    """Another runtime in the process, torch's, must not find ours."""
    exported = shown("nm", "--dynamic", "--defined-only", _load.NATIVE.with_name("libvtkernels.so"))
    assert not re.findall(r" [TWV] (cuda[A-Z]\w*|__cudart\w*)$", exported, re.MULTILINE)


@pytest.mark.parametrize("op", LAUNCHES)
def test_op_is_registered_for_gpus(op):
    assert vt.which(op, "cuda") == "native"
    for name in (op, f"{op}.out") if op in OUT else (op,):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(qualified(name), "CUDA")


@pytest.mark.parametrize("op", LAUNCHES)
def test_op_runs_on_the_cpu_of_this_torch(op):
    """Under torch without CUDA and under a CUDA build (``make test-cuda-torch``)."""
    with vt.backend("native"):
        assert all(torch.isfinite(x).all() for x in run(op, example(op)))
