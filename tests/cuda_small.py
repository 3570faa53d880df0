"""Every native CUDA kernel, as a program for tools that watch a process.

compute-sanitizer --tool memcheck --error-exitcode 1 python tests/cuda_small.py       small sizes: a sanitizer is slow
ncu --profile-from-start off python tests/cuda_small.py --headline                   real sizes, once, after a warm-up
python tests/cuda_small.py --loads                                      is the library there, and does a kernel run?
python tests/cuda_small.py --list                                                    the calls, without a GPU
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch
from cases import Draw, example, kept, replace, run
from emulated import LAUNCHES

import vtkernels as vt

# float32 and half rows; lengths; more rows than a tile; a row that is ranked by digits; a similarity beyond shared memory
SIZES = ((3, 17), (2, 130), (1, 1100))


def small() -> Iterator[tuple[str, dict]]:
    for op in LAUNCHES:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            for batch, n in SIZES:
                for k in sorted({n // 3, min(n, 40)}):
                    yield op, example(op, batch=batch, n=n, k=k, dtype=dtype, lengths=True)


def headline() -> Iterator[tuple[str, dict]]:
    """LLaVA-1.5's tower, and a Qwen-sized graph."""
    draw = Draw(dtype=torch.float16)
    features, saliency = draw.normal(1, 576, 1024), draw.uniform(1, 576).float()
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    query, key = draw.normal(1, 16, 64), draw.normal(1, 16, 577, 64)
    yield "scope_select", {"features": features, "saliency": saliency, "k": 64}
    yield "coverage_select", {"similarity": (unit @ unit.mT).half(), "weight": saliency, "k": 64}
    yield "graph_propagate", {"features": features}
    yield "graph_propagate", {"features": draw.normal(1, 2304, 4096)}
    yield "cls_attention", {"query": query, "key": key}
    yield "attention_topk", {"query": query, "key": key, "k": 64}
    yield "topk_select", {"scores": saliency, "k": 64}
    yield "compact_", {"tokens": draw.normal(1, 576, 4096), "indices": kept(draw, 1, 576, 64)}


def loads() -> None:
    state = vt.status("native", "cuda")
    if not state.available:
        sys.exit(f"the native CUDA backend does not load: {state.reason}")
    with vt.backend("native"):
        got = vt.topk_select(torch.tensor([[1.0, 3.0, 2.0]], device="cuda"), 2).tolist()
    if got != [[1, 2]]:
        sys.exit(f"the native CUDA kernels do not work: topk_select gave {got}, not [[1, 2]]")
    print("the native CUDA kernels load and run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("headline", "loads", "list"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    if options.loads:
        return loads()
    calls = list(headline() if options.headline else small())
    if options.list:
        print(f"{len(calls)} calls of {', '.join(dict.fromkeys(op for op, _ in calls))}")
        return
    calls = [(op, replace(arguments, lambda x: x.cuda())) for op, arguments in calls]
    with vt.backend("native"):
        for op, arguments in calls:
            run(op, arguments)
        torch.cuda.synchronize()
        if options.headline:
            torch.cuda.cudart().cudaProfilerStart()
            for op, arguments in calls:
                run(op, arguments)
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStop()
    print(f"{len(calls)} calls of {len({op for op, _ in calls})} ops on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
