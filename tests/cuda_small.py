"""Every native CUDA kernel once, at small sizes: a program for compute-sanitizer, which slows a kernel down a hundredfold.

compute-sanitizer --tool memcheck --error-exitcode 1 python tests/cuda_small.py
"""

from __future__ import annotations

import torch
from cases import example, replace, run
from emulated import LAUNCHES

import vtkernels as vt

# float32 and half rows; lengths; more rows than a tile; a row that is ranked by digits; a similarity beyond shared memory
SIZES = ((3, 17), (2, 130), (1, 1100))


def main() -> None:
    calls = 0
    with vt.backend("native"):
        for op in LAUNCHES:
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                for batch, n in SIZES:
                    for k in {n // 3, min(n, 40)}:
                        arguments = example(op, batch=batch, n=n, k=k, dtype=dtype, lengths=True)
                        run(op, replace(arguments, lambda x: x.cuda()))
                        calls += 1
    torch.cuda.synchronize()
    print(f"{calls} calls of {len(LAUNCHES)} ops on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main()
