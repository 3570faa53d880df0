"""Compiles every ``COMPILE`` build of the Triton kernels ahead of time and prints what they take; needs no GPU.

A program of its own: under TRITON_INTERPRET=1, as the tests run, Triton compiles nothing.

    python tests/compile_triton.py [op ...] [--write]

``--write`` puts the figures in ``tests/data/triton_resources.csv``, the budget that ``test_triton.py`` holds the kernels to:
registers rounded up to the 8 in which they are allocated, shared memory to KiB, and the version of Triton that compiled them.
Rows of other versions stay as they are.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

FIELDS = ("op", "build", "arch", "registers", "shared", "spills", "triton")
BUDGET = Path(__file__).with_name("data") / "triton_resources.csv"
ARCHITECTURES = (80, 90, 100)


def compiled(build, arch: int):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    unknown = set(build.signature) ^ (set(names) - set(build.constexprs))
    if unknown:
        raise ValueError(f"{build.name}: signature and constexprs must hold each argument once, differ in {', '.join(unknown)}")
    for parameter in build.kernel.params:
        known = parameter.name in build.divisible or isinstance(build.constexprs.get(parameter.name), int)
        if parameter.do_not_specialize and known:
            raise ValueError(f"{build.name}: a launch knows nothing of the value of {parameter.name}")
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    constexprs = {(names.index(name),): value for name, value in build.constexprs.items()}
    unaligned = {parameter.name for parameter in build.kernel.params if parameter.do_not_specialize_on_alignment}
    pointers = {name for name, kind in build.signature.items() if kind.startswith("*")} - unaligned
    aligned = [name for name in names if name in pointers or name in build.divisible]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(build.kernel, signature, constexprs, attributes)
    options = {
        "num_warps": build.num_warps,
        "num_stages": build.num_stages,
        "maxnreg": build.maxnreg,
        "enable_fp_fusion": True,
    }
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(kernel) -> dict[str, int]:
    """Registers of a thread, shared memory of a block, and bytes of stack, where spilled registers lie."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([program, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", text)}
    return {
        "registers": found["REG"],
        "shared": max(kernel.metadata.shared, found["SHARED"]),
        "spills": found["STACK"] + found["LOCAL"],
    }


def figures(op: str, place: int) -> list[dict[str, str | int]]:
    """One build of an op on every architecture."""
    import triton

    build = importlib.import_module(f"vtkernels.triton.{op}").COMPILE[place]
    return [
        {"op": op, "build": build.name, "arch": f"sm_{arch}", **resources(compiled(build, arch)), "triton": triton.__version__}
        for arch in ARCHITECTURES
    ]


def rows(ops: list[str]) -> Iterator[dict[str, str | int]]:
    """All figures, in order; compiled on all processors, for nearly all of the time goes into that."""
    with ProcessPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        builds = [(op, place) for op in ops for place in range(len(importlib.import_module(f"vtkernels.triton.{op}").COMPILE))]
        for found in pool.map(figures, *zip(*builds, strict=True)):
            yield from found


def main() -> None:
    from vtkernels.triton import KERNELS, _launch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("op", nargs="*", help="default: every op with a Triton kernel")
    parser.add_argument("--write", action="store_true", help="record the figures as the budget")
    arguments = parser.parse_args()
    if _launch.interpreted():
        parser.error("TRITON_INTERPRET is set: Triton compiles nothing; unset it")
    ops = arguments.op or list(KERNELS)
    if arguments.write:
        write_budget(rows(ops), ops)
        return
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows(ops):
        writer.writerow(row)
        sys.stdout.flush()


def write_budget(measured: Iterable[dict[str, str | int]], ops: Iterable[str]) -> None:
    """Puts the figures of ``ops`` in place of what the budget has for them by the same version of Triton."""
    import triton

    from vtkernels.triton import KERNELS

    replaced = {(op, triton.__version__) for op in ops}
    kept = [row for row in read_budget() if (row["op"], row["triton"]) not in replaced and row["op"] in KERNELS]
    new = [row | {"registers": up(row["registers"], 8), "shared": up(row["shared"], 1024)} for row in measured]
    with BUDGET.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + new, key=lambda row: (row["triton"], KERNELS.index(row["op"]))))


def up(value: int, step: int) -> int:
    return -(-value // step) * step


def read_budget() -> list[dict[str, str]]:
    if not BUDGET.exists():
        return []
    with BUDGET.open(newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
