"""``vtkernels info --plan``: how the CUDA kernels would be launched, by the library's own planner. Needs no GPU."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vtkernels.cli import _console
from vtkernels.cli._errors import UsageError

OPS = ("scope_select", "coverage_select", "graph_propagate", "cls_attention", "attention_topk", "topk_select", "compact_")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--plan`` and what it takes."""
    group = parser.add_argument_group("launch plans of the CUDA kernels")
    group.add_argument("--plan", nargs=3, type=int, metavar=("N", "D", "K"), help="for N tokens of D channels, K kept")
    group.add_argument("--arch", type=int, default=90, metavar="SM", help="ten times the compute capability (default: 90)")
    group.add_argument("--batch", type=int, default=1, metavar="B", help="images (default: 1)")
    group.add_argument("--heads", type=int, default=16, metavar="H", help="heads of the attention ops (default: 16)")


def run(options: argparse.Namespace) -> int:
    """Print the plan of every op."""
    plans = collect(*options.plan, arch=options.arch, batch=options.batch, heads=options.heads)
    if options.json:
        print(json.dumps(plans, indent=2))
        return 0
    n, d, k = options.plan
    rows = []
    for op, plan in plans["ops"].items():
        for place, launch in enumerate(plan["launches"]):
            own = [op, plan["path"]] if place == 0 else ["", ""]
            cluster = str(launch["cluster"]) if launch["cluster"] > 1 else ""
            workspace = _bytes(plan["workspace"]) if place == 0 else ""
            rows.append([*own, str(launch["blocks"]), cluster, _bytes(launch["shared"]), _waits(launch), workspace])
    gpu = (
        f"{plans['gpu']}: {plans['multiprocessors']} multiprocessors, {_bytes(plans['shared_per_block'])} shared memory a block"
    )
    sizes = f"{options.batch} x {n} tokens, {d} channels, {k} kept, {options.heads} heads"
    _console.table(
        ["op", "path", "blocks", "cluster", "shared", "all at once", "workspace"],
        rows,
        title=f"Launches for {sizes} on sm_{options.arch} ({gpu})",
        left=2,
    )
    if plans["cuda"] is None:
        print(
            _console.wrap(
                "\nThis library was built without nvcc and has no CUDA kernels: the plan is what a build with them does."
            )
        )
    return 0


def collect(n: int, d: int, k: int, *, arch: int, batch: int, heads: int) -> dict[str, Any]:
    """The plans of all ops as plain data."""
    from vtkernels import _load

    host = _load.host()
    if host is None:
        raise UsageError(f"--plan asks the planner of vtkernels._host, which is missing: {_load.why_no_host()}")
    if batch < 1 or heads < 1 or n < 1 or d < heads or d % heads:
        raise UsageError(
            f"--plan needs at least one image, token and head, and D a multiple of the heads; got B = {batch}, N = {n}, "
            f"D = {d}, H = {heads}"
        )
    try:
        sizes = {"arch": arch, "images": batch, "n": n, "d": d, "k": k, "heads": heads}
        plans = {op: host.plan(op, **sizes) for op in OPS}
    except ValueError as error:
        raise UsageError(f"--plan: {error}") from None
    first = plans[OPS[0]]
    common = {name: first[name] for name in ("gpu", "multiprocessors", "shared_per_block")}
    return {
        "cuda": _load.build_info()["cuda"],
        **sizes,
        **common,
        "ops": {op: {name: value for name, value in plan.items() if name not in common} for op, plan in plans.items()},
    }


def _bytes(count: int) -> str:
    if count < 1024:
        return f"{count} B" if count else "0"
    return f"{count / 1024:.1f} KiB" if count < 1024**2 else f"{count / 1024**2:.1f} MiB"


def _waits(launch: dict[str, Any]) -> str:
    return "yes" if launch["resident"] else ""
