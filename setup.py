"""Builds the native library with CMake and ninja. Everything else about the package is in pyproject.toml."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
TORCH_TARGET = (2, 10)
NATIVE = os.environ.get("VTKERNELS_BUILD_NATIVE", "1") != "0"
HOST = os.environ.get("VTKERNELS_BUILD_HOST", "1") != "0"


def torch_folder() -> Path:
    """Where torch is installed, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        sys.exit(
            "vtkernels is built against the torch that is installed, and found none.\n"
            "Install torch>=2.10 first, then: pip install --no-build-isolation vtkernels\n"
            "(with build isolation, pip hides the installed torch). "
            "VTKERNELS_BUILD_NATIVE=0 installs without the native library; every op then runs on its reference."
        )
    return Path(spec.origin).parent


def check_version(version: str) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < TORCH_TARGET:
        sys.exit(f"vtkernels needs torch>={TORCH_TARGET[0]}.{TORCH_TARGET[1]} to build, found torch {version}")


def jobs() -> str:
    """MAX_JOBS, else as many compilers as there are cores and 1.5 GiB of memory for each."""
    if os.environ.get("MAX_JOBS"):
        return os.environ["MAX_JOBS"]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return str(max(1, min(os.cpu_count() or 1, memory // (3 << 29))))


def cuda_options() -> list[str]:
    """VTKERNELS_BUILD_CUDA (auto, 0, 1) and TORCH_CUDA_ARCH_LIST, in CMake's words."""
    wanted = os.environ.get("VTKERNELS_BUILD_CUDA", "auto")
    if wanted not in ("auto", "0", "1"):
        sys.exit(f"VTKERNELS_BUILD_CUDA must be auto, 0 or 1, got {wanted!r}")
    options = [f"-DVTKERNELS_BUILD_CUDA={wanted}"]
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        architectures = []
        for entry in os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";").split(";"):
            found = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
            if found is None:
                sys.exit(f"TORCH_CUDA_ARCH_LIST must list architectures like 8.0 or 9.0a or 10.0+PTX, got {entry!r}")
            number = found[1] + found[2]
            architectures += [f"{number}-real"] + ([f"{number}-virtual"] if found[3] else [])
        options.append(f"-DVTKERNELS_CUDA_ARCHITECTURES={';'.join(architectures)}")
    return options


def host_options() -> list[str]:
    """VTKERNELS_BUILD_HOST, and the Python that ``vtkernels._host`` is for."""
    options = [f"-DVTKERNELS_BUILD_HOST={int(HOST)}"]
    if HOST:
        import pybind11

        options += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DPython_EXECUTABLE={sys.executable}"]
    return options


class CMakeBuild(build_ext):
    """The CMake project as one extension: the shared libraries and ``vtkernels._host``."""

    def build_extension(self, ext: Extension) -> None:
        torch = torch_folder()
        version = importlib.metadata.version("torch")
        check_version(version)
        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake", "-G", "Ninja", "-S", str(ROOT.resolve()), "-B", str(build),
            f"-DCMAKE_BUILD_TYPE={os.environ.get('VTKERNELS_BUILD_TYPE', 'Release')}",
            f"-DVTKERNELS_TORCH_INCLUDE={torch / 'include'}",
            f"-DVTKERNELS_TORCH_LIB={torch / 'lib'}",
            f"-DVTKERNELS_TORCH_VERSION={version}",
            f"-DVTKERNELS_VERSION={self.distribution.get_version()}",
            f"-DVTKERNELS_OUTPUT={package}",
            *host_options(),
            f"-DVTKERNELS_SANITIZE={os.environ.get('VTKERNELS_SANITIZE', '')}",
            *cuda_options(),
        ]  # fmt: skip
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(build), "--parallel", jobs()], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(
                f"vtkernels: the native library was not built ({error}); the reason stands above. It needs a C++17 compiler, "
                f"cmake and ninja. VTKERNELS_BUILD_NATIVE=0 installs without it; every op then runs on its reference."
            )
        if self.editable_mode:  # setuptools copies the extension itself into the source tree, and nothing that lies beside it
            shutil.copytree(package / "_native", ROOT / "vtkernels" / "_native", dirs_exist_ok=True)


class Wheel(bdist_wheel):
    """Without ``vtkernels._host`` nothing in the wheel depends on the version of Python: one serves them all."""

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if HOST or not NATIVE else ("py3", "none", platform)


setup(
    # a folder of its own in the repository, where `python -m benchmarks` works too
    packages=[*find_packages(include=["vtkernels", "vtkernels.*"]), "vtkernels.benchmarks"],
    package_dir={"vtkernels.benchmarks": "benchmarks"},
    # setuptools looks for the file of an extension that is not optional; without _host there is none
    ext_modules=[Extension("vtkernels._host", sources=[], optional=not HOST)] if NATIVE else [],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
