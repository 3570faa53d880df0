"""The CUDA kernels as backends of the tests: their source compiled for the host, run by the emulator on CPU tensors.

The GPUs have little shared memory, so that inputs of a size that an emulator can run take the paths of large ones.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator

import torch
from emulator import build

import vtkernels as vt
from vtkernels import _checks, reference
from vtkernels._ops import NAMESPACE
from vtkernels._schemas import OUT, SHAPES

# architecture, multiprocessors, bytes of shared memory of a block
GPUS = {"sm_90": (90, 132, 48 * 1024), "sm_80": (80, 3, 48 * 1024), "sm_90 wide": (90, 1, 227 * 1024)}
CHOSEN: set[tuple[str, str]] = set()  # every op and path of the planner that has run


def scope_select(gpu, out, features, saliency, k, alpha, combine, lengths, sort):
    return build.ops().scope_select(gpu, features, saliency, k, alpha, combine, lengths, sort, out)


def coverage_select(gpu, out, similarity, weight, k, combine, lengths, sort):
    return build.ops().coverage_select(gpu, similarity, weight, k, combine, lengths, sort, *out)


def graph_propagate(gpu, out, features, threshold, temperature, iterations, lengths):
    # as csrc/torch/graph_propagate.cpp
    threshold, temperature = (max(x, torch.finfo(torch.float32).tiny) for x in (threshold, temperature))
    return build.ops().graph_propagate(gpu, features, threshold, temperature, iterations, lengths, *out)


def cls_attention(gpu, out, query, key, scale, prefix, reduce, lengths):
    scale = key.shape[3] ** -0.5 if scale is None else scale
    return build.ops().cls_attention(gpu, query, key, scale, prefix, reduce, lengths, out)


def topk_select(gpu, out, scores, k, lengths, sort):
    return build.ops().topk_select(gpu, scores, k, lengths, sort, out)


def attention_topk(gpu, out, query, key, k, scale, prefix, lengths, sort):
    scale = key.shape[3] ** -0.5 if scale is None else scale
    return build.ops().attention_topk(gpu, query, key, k, scale, prefix, lengths, sort, *out)


def compact_(gpu, out, tokens, indices):
    return build.ops().compact_(gpu, tokens, indices)


LAUNCHES: dict[str, Callable[..., str]] = {
    launch.__name__: launch
    for launch in (scope_select, coverage_select, graph_propagate, cls_attention, topk_select, attention_topk, compact_)
}


def gpus_of(op: str) -> tuple[str, ...]:
    """Where the GPUs differ in nothing but the number of blocks, one is enough: ``test_cuda_emulated.py`` has the other."""
    if op not in LAUNCHES or build.why_not():
        return ()
    if op == "graph_propagate":  # wide tiles, where they occupy a twentieth of the multiprocessors
        return ("sm_90", "sm_90 wide")
    if op == "scope_select":
        return ("sm_90", "sm_80", "sm_90 wide")
    return ("sm_90",) if op in ("topk_select", "compact_") else ("sm_90", "sm_80")


@contextlib.contextmanager
def emulated(architecture: int, multiprocessors: int, shared: int) -> Iterator[None]:
    """Ops on CPU tensors run their CUDA kernels, planned for such a GPU."""
    gpu = build.ops().Gpu(architecture, multiprocessors, shared)
    library = torch.library.Library(NAMESPACE, "IMPL")
    with vt.backend("auto"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*previously registered kernel")  # that is the purpose
            for op in LAUNCHES:
                library.impl(op, _kernel(op, gpu, out=False), "CPU")
                if op in OUT:
                    library.impl(f"{op}.out", _kernel(op, gpu, out=True), "CPU")
        try:
            yield
        finally:
            library._destroy()


def _kernel(op: str, gpu, *, out: bool) -> Callable:
    """What csrc/torch/<op>.cpp does: checks, results, launch. A result of the caller's is written as it lies."""
    check, bind = getattr(_checks, op), _binder(op)

    def launch(result, call):
        CHOSEN.add((op, LAUNCHES[op](gpu, result, **call)))

    def prepare(args, kwargs):
        check(*args, **kwargs)
        if op in _checks.DATA:
            _checks.DATA[op](*args, **kwargs)
        return SHAPES[op](*args, **kwargs), bind(*args, **kwargs)

    @torch.no_grad()
    def kernel(*args, **kwargs):
        result, call = prepare(args, kwargs)
        launch(result, call)
        return result

    @torch.no_grad()
    def kernel_out(*args, out, **kwargs):
        like, call = prepare(args, kwargs)
        _checks.out(op, out, OUT[op], like.shape, args[0])
        _checks.apart(op, out, *args, **kwargs)
        launch(out, call)

    return kernel_out if out else kernel


def _binder(op: str) -> Callable[..., dict]:
    """The dispatcher leaves out arguments that have their default value."""
    signature = inspect.signature(getattr(reference, op))

    @functools.wraps(signature.bind)
    def bind(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    return bind
