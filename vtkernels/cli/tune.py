"""``vtkernels tune``: launch parameters of the Triton kernels, timed on the GPU at hand."""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vtkernels.cli import _console
from vtkernels.cli._errors import UsageError, first_line
from vtkernels.cli._files import check_out, replacing

_EXAMPLES = """examples:
  vtkernels tune --output h200.json
  VTKERNELS_TRITON_TABLE=h200.json python serve.py     launches with what was found; without it the committed table holds
"""
_LIMITS = {"num_warps": (1, 16), "num_stages": (1, 5), "maxnreg": (32, 255)}
_WORTH_IT = 0.97  # of the time before: less is noise


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "tune",
        help="time launch parameters of the Triton kernels on this GPU",
        description="Times every Triton kernel at the shapes of LLaVA-1.5 and LLaVA-NeXT, changing one launch parameter at\n"
        "a time, and writes the best as a table that VTKERNELS_TRITON_TABLE takes. Nothing is tuned unless asked for here.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the JSON table to write")
    parser.add_argument("--op", action="append", metavar="OP", help="only the kernels of this op (repeatable)")


def run(options: argparse.Namespace) -> int:
    """Tune, write the table as it grows, print what changed."""
    import torch

    import vtkernels as vt
    from vtkernels import triton
    from vtkernels.triton import _launch

    for op in options.op or ():
        if op not in triton.KERNELS:
            raise UsageError(f"--op must be one of {', '.join(triton.KERNELS)}, got {op!r}")
    state = vt.status("triton", "cuda")
    if not state.available:
        raise UsageError(f"nothing to tune here: triton on a GPU: {state.reason}")
    if _launch.interpreted():
        raise UsageError("nothing to tune here: TRITON_INTERPRET is set, kernels are interpreted; unset it")
    check_out(options.output, "--output")
    arch = _launch.architecture(torch.device("cuda"))
    found, rows = [], []
    for op, label, arguments in workloads(options.op or triton.KERNELS, torch.device("cuda")):
        print(f"{op} {label} ...", file=sys.stderr, flush=True)
        launch = triton.load(op)
        for kernel, shape, before, best, gain in tune(functools.partial(launch, **arguments), timed):
            found.append((kernel, shape, best))
            rows.append([kernel, label, _change(before, best) or "as committed", f"{gain:.2f}x"])
            with replacing(options.output) as part:  # each time, so that what follows can cost nothing of it
                part.write_text(json.dumps({arch: table(found)}, indent=2) + "\n")
    _console.table(["kernel", "shape", "change", "op faster"], rows, title=torch.cuda.get_device_name(), left=3)
    print(f"\nwrote {options.output}; use it with VTKERNELS_TRITON_TABLE={options.output}")
    return 0


def workloads(ops: Any, device: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(op, shape in words, arguments) at the sizes of the models: N tokens of D channels, 16 heads of 64, K kept."""
    import torch

    def normal(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(shape, generator=generator).to(dtype).to(device)

    for op in ops:
        for n, d, k in ((576, 1024, 64), (2880, 1024, 320)):
            for dtype in (torch.float16, torch.float32):
                scores = normal(1, n, dtype=torch.float32).softmax(-1)
                if op in ("scope_select", "crop_topk"):
                    name = {"scope_select": "saliency", "crop_topk": "attention"}[op]
                    arguments = {"features": normal(1, n, d, dtype=dtype), name: scores, "k": k}
                elif op == "coverage_select":
                    arguments = {"similarity": normal(1, n, n, dtype=dtype), "weight": scores, "k": k}
                elif op == "graph_propagate":
                    arguments = {"features": normal(1, n, d, dtype=dtype)}
                elif op == "token_clusters":
                    arguments = {"features": normal(1, n, d, dtype=dtype), "threshold": 0.5}
                elif op in ("cls_attention", "attention_topk", "attention_profile"):
                    rows = (n + 1,) if op == "attention_profile" else ()
                    arguments = {"query": normal(1, 16, *rows, 64, dtype=dtype), "key": normal(1, 16, n + 1, 64, dtype=dtype)}
                    arguments |= {"k": k} if op == "attention_topk" else {}
                elif op == "topk_select":
                    arguments = {"scores": scores.to(dtype), "k": k}
                else:
                    indices = torch.arange(0, n, n // k, device=device)[None, :k]
                    arguments = {"tokens": normal(1, n, d, dtype=dtype), "indices": indices}
                label = f"N={n} {str(dtype).removeprefix('torch.')}"
                yield op, label, arguments


def tune(
    call: Callable[[], Any], time: Callable[[Callable[[], Any]], float]
) -> Iterator[tuple[str, dict[str, int], dict[str, Any], dict[str, Any], float]]:
    """For each kernel that ``call`` launches: (name, shape, parameters before, best found, how much faster the call is).

    One parameter is halved or doubled at a time (``num_stages``: one more or less) as long as that helps. A candidate that does
    not compile or asks for more than the device has is skipped with a word to standard error; one that changes a result is
    left out.
    """
    from vtkernels.triton import _launch

    want = _results(call())
    with _launch.recorded() as launched:
        call()
    for kernel, (shape, before) in launched.items():
        best, first = dict(before), time(call)
        fastest = first
        improved = True
        while improved:
            improved = False
            for candidate in _neighbours(best):
                with _launch.override(kernel, **candidate):
                    try:
                        if not _agree(_results(call()), want):
                            continue
                        took = time(call)
                    except Exception as error:
                        if not _launch.refused(error):
                            raise
                        print(f"{kernel} {_change(best, candidate)}: skipped: {first_line(error)}", file=sys.stderr, flush=True)
                        continue
                if took < _WORTH_IT * fastest:
                    best, fastest, improved = candidate, took, True
                    break
        yield kernel, shape, before, best, first / fastest


def _change(before: dict[str, Any], after: dict[str, Any]) -> str:
    return ", ".join(f"{name} {before[name]} -> {after[name]}" for name in after if after[name] != before[name])


def _neighbours(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, value in values.items():
        low, high = _LIMITS.get(name, (1, 4096))
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        for step in steps:
            if low <= step <= high:
                yield {**values, name: step}


def _results(x: Any) -> tuple[Any, ...]:
    return () if x is None else x if isinstance(x, tuple) else (x,)


def _agree(got: tuple[Any, ...], want: tuple[Any, ...]) -> bool:
    """Choices are the same; sums may be rounded differently."""
    import torch

    return all(
        torch.allclose(a, b, rtol=1e-5, atol=1e-7) if a.is_floating_point() else torch.equal(a, b)
        for a, b in zip(got, want, strict=True)
    )


def timed(call: Callable[[], Any]) -> float:
    """Median milliseconds of a call on the device, host work hidden by several calls in flight."""
    import torch

    samples: list[float] = []
    for _ in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(20):
            call()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / 20)
    return statistics.median(samples)


def table(found: list[tuple[str, dict[str, int], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the launch table: smaller shapes first, the greatest without a bound so that every shape has a row."""
    kernels: dict[str, dict[tuple[tuple[str, int], ...], dict[str, Any]]] = {}
    for kernel, shape, best in found:
        kernels.setdefault(kernel, {})[tuple(shape.items())] = best
    rows = {}
    for kernel, shapes in kernels.items():
        *rest, last = sorted(shapes, key=lambda shape: [size for _, size in shape])
        rows[kernel] = [{"up_to": dict(shape), "use": shapes[shape]} for shape in rest] + [{"use": shapes[last]}]
    return rows
