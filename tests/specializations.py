"""What Triton would compile for a set of calls, found out without a GPU: each distinct specialization of each kernel.

    python tests/specializations.py [op ...] [--compile]

Counts what ``gpu_triton.py`` makes Triton compile; ``--compile`` compiles it ahead of time and says how long that takes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch

TARGET = ("cuda", 90, 32)
MULTIPROCESSORS = 132


@contextlib.contextmanager
def recorded() -> Iterator[dict[Any, Callable[[], Any]]]:
    """Launches on CPU tensors compile and run nothing: each new specialization is kept, with a function that compiles it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.jit import JITFunction, driver

    from vtkernels.triton import _launch

    target = GPUTarget(*TARGET)
    found: dict[Any, Callable[[], Any]] = {}

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return target

    def keep(kernel, key, signature, device, constexprs, options, attrs, warmup):
        source = ASTSource(kernel, signature, constexprs, attrs)
        found[kernel.__name__, key] = lambda: triton.compile(source, target=target, options=options.__dict__)

    with (
        patch.object(JITFunction, "_do_compile", keep),
        patch.object(_launch, "architecture", lambda device: f"sm_{target.arch}"),
        patch("vtkernels.triton.graph_propagate.multiprocessors", lambda device: MULTIPROCESSORS),
        patch.object(driver, "_active", Driver()),
    ):
        yield found


def launches(op: str) -> Iterator[dict[str, Any]]:
    """The arguments of every call that ``gpu_triton.py`` makes of ``op``."""
    from gpu_triton import cases, variants

    for case in cases(op, torch.device("cpu")):
        yield case.arguments
        for _, arguments in variants(case):
            yield arguments


def main() -> None:
    from vtkernels.triton import KERNELS, load

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="*", help="default: every op with a Triton kernel")
    parser.add_argument("--compile", action="store_true", help="compile them, and print the seconds of each op")
    options = parser.parse_args()
    total = 0
    for op in options.op or KERNELS:
        with recorded() as found:
            for arguments in launches(op):
                load(op)(**arguments)
        total += len(found)
        print(f"{op} {len(found)}", end="", flush=True)
        if options.compile:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["TRITON_CACHE_DIR"] = folder
                begin = time.perf_counter()
                for compile_ in found.values():
                    compile_()
            print(f" {time.perf_counter() - begin:.1f} s", end="")
        print()
    print(f"all {total}")


if __name__ == "__main__":
    main()
