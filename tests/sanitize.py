"""Builds the library for the CPU with a sanitizer, proves that the sanitizer sees, and runs the native tests and the fuzzer.

    python tests/sanitize.py address [--calls N]    reads and writes outside of memory, and undefined behaviour
    python tests/sanitize.py thread [--calls N]     data races

The package lies in a folder of its own, build/sanitize-<kind>/lib, and is found there by way of PYTHONPATH. Python itself is
not built for a sanitizer, so the sanitizer's runtime is loaded before it. The first report ends the process that made it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
REPORTED = 66  # exit code of a process that made a report
TASKS = 3000  # of a planted function: so many that no thread takes them all


@dataclass(frozen=True)
class Sanitizer:
    runtime: str
    options: dict[str, str]
    imports: tuple[str, ...]  # what instrumented code calls
    faults: dict[str, str]  # planted functions, and words of the report
    without: tuple[str, ...] = ()  # tests of what the runtime does not support


SANITIZERS = {
    "address": Sanitizer(
        "libasan.so",
        # Python and torch leave memory to the end of the process on purpose.
        {"ASAN_OPTIONS": f"detect_leaks=0:exitcode={REPORTED}", "UBSAN_OPTIONS": f"print_stacktrace=1:exitcode={REPORTED}"},
        ("__asan_report_load", "__asan_report_store", "__ubsan_handle_"),
        {"read_behind_the_end": "heap-buffer-overflow", "overflow": "signed integer overflow"},
    ),
    "thread": Sanitizer(
        "libtsan.so",
        # What Python, torch and OpenMP do among themselves is not looked at: they are not instrumented.
        {"TSAN_OPTIONS": f"ignore_noninstrumented_modules=1:halt_on_error=1:exitcode={REPORTED}"},
        ("__tsan_read", "__tsan_write", "__tsan_atomic64_fetch_add"),
        {"race": "data race"},
        # It starts no thread after a fork, and holds signals back.
        ("forked", "data_loader", "keyboard_interrupt"),
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=SANITIZERS)
    parser.add_argument("--calls", type=int, default=4000, metavar="N", help="of the fuzzer (default: 4,000)")
    options = parser.parse_args()
    folder = ROOT / "build" / f"sanitize-{options.kind}"
    build(options.kind, folder)
    sanitizer = SANITIZERS[options.kind]
    environment = environment_of(sanitizer, folder)
    prove(sanitizer, folder, environment)
    test(sanitizer, environment)
    return run([sys.executable, TESTS / "fuzz", "--calls", options.calls], environment).returncode


def run(command: list, environment: dict[str, str], **kwargs) -> subprocess.CompletedProcess:
    # The runtime of ThreadSanitizer wants its memory where address space randomisation may put libraries.
    command = ["setarch", "-R", *map(str, command)] if shutil.which("setarch") else [*map(str, command)]
    return subprocess.run(command, env=environment, **{"cwd": ROOT, **kwargs})


def build(kind: str, folder: Path) -> None:
    """The whole package by way of setup.py, optimised and with line numbers; nothing is done where nothing has changed."""
    settings = {"VTKERNELS_SANITIZE": kind, "VTKERNELS_BUILD_CUDA": "0", "VTKERNELS_BUILD_TYPE": "RelWithDebInfo"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    where = ["--build-base", folder, "--build-temp", folder / "cmake", "--build-lib", folder / "lib"]
    command = [sys.executable, "setup.py", "--quiet", "build", *map(str, where)]
    subprocess.run(command, env={**os.environ, "PATH": path, **settings}, cwd=ROOT, check=True)


def environment_of(sanitizer: Sanitizer, folder: Path) -> dict[str, str]:
    # libstdc++ too, or the runtime does not find what it wraps of exceptions.
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in (sanitizer.runtime, "libstdc++.so")
    ]
    settings = {"LD_PRELOAD": ":".join(runtimes), "PYTHONPATH": str(folder / "lib"), "OMP_WAIT_POLICY": "passive"}
    return {**os.environ, **settings, **sanitizer.options, "VTKERNELS_REQUIRE_NATIVE": "1"}


def prove(sanitizer: Sanitizer, folder: Path, environment: dict[str, str]) -> None:
    """The library that Python loads is instrumented, every planted fault is reported, and what is no fault is not."""
    code = "import vtkernels; print(vtkernels._load.NATIVE or vtkernels._load.WHY_NOT)"
    quietly = {"cwd": folder / "lib", "capture_output": True, "text": True}
    loaded = run([sys.executable, "-c", code], environment, **quietly)
    if not loaded.stdout.startswith(str(folder)):
        sys.exit(f"another library was loaded than that of {folder}: {loaded.stdout}{loaded.stderr}")
    for library in (folder / "lib" / "vtkernels" / "_native").glob("*.so"):
        symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True).stdout
        missing = [name for name in sanitizer.imports if name not in symbols]
        if missing and library.name == "libvtkernels.so":
            sys.exit(f"{library} is not instrumented: no {', '.join(missing)}")
    for function, words in {**sanitizer.faults, "no_race": ""}.items():
        code = (
            f"import ctypes, torch; torch.set_num_threads(4); ctypes.CDLL('{folder}/cmake/libplanted.so').{function}({TASKS})"
        )
        result = run([sys.executable, "-c", code], environment, **quietly)
        if (result.returncode, words in result.stderr) != (REPORTED if words else 0, True):
            sys.exit(f"{function} ended with {result.returncode}, should have reported {words!r}:\n{result.stderr}")
        print(f"{function}: {words or 'nothing'} reported, as it should be", flush=True)


def test(sanitizer: Sanitizer, environment: dict[str, str]) -> None:
    """What the tests of the ops and of their common contract run on the native library."""
    ops = [path.with_suffix(".py").name for path in (ROOT / "vtkernels" / "reference").glob("*.py")]
    files = [TESTS / f"test_{name}" for name in ops if (TESTS / f"test_{name}").exists()]
    files += sorted(TESTS.glob("test_golden_*.py"))
    files += [TESTS / f"test_{name}.py" for name in ("native", "invariance", "contract", "errors", "concurrency")]
    chosen = " and ".join(["(native or concurrency)", *(f"not {name}" for name in sanitizer.without)])
    # not by `python -m`, which would put the checkout before the folder
    command = [Path(sys.executable).with_name("pytest"), "-q", "-n", "2", "-k", chosen, *files]
    if code := run(command, environment).returncode:
        sys.exit(code)


if __name__ == "__main__":
    raise SystemExit(main())
