"""On an NVIDIA GPU: the native kernels against the reference, and their manners towards streams, devices, graphs and memory.

The compiled Triton kernels have a program of their own (``gpu_triton.py``), for tests run with Triton's interpreter.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import arrange, assert_same, bits, example, replace, rows_of, run
from emulated import LAUNCHES
from oracles import check_selection, coverage_problems, scope_problems
from torch import Tensor

import vtkernels as vt
from vtkernels._ops import ops
from vtkernels._schemas import OUT

if not torch.cuda.is_available() or torch.version.hip is not None:
    pytest.skip("needs an NVIDIA GPU", allow_module_level=True)
if not vt.status("native", "cuda").available:
    pytest.skip(vt.status("native", "cuda").reason, allow_module_level=True)

each_op = pytest.mark.parametrize("op", LAUNCHES)
each_float = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@pytest.fixture(autouse=True)
def native():
    """After some errors of a kernel every later call in the process fails: under xdist another worker takes over."""
    with vt.backend("native"):
        yield
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise


def on(device, op: str, **options) -> dict:
    return replace(example(op, **options), lambda x: x.to(device))


def fresh(arguments: dict) -> dict:
    """The same values in other memory: ``compact_`` writes into its argument."""
    return replace(arguments, lambda x: x.clone())


def saved(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.clone() for x in results)


# ------------------------------------------------------------------------------------------------ the answer


@each_op
@each_float
@pytest.mark.parametrize(("batch", "n"), [(3, 17), (2, 129), (1, 576), (70, 144), (1, 2880)])
@pytest.mark.parametrize("lengths", [False, True], ids=["whole", "ragged"])
def test_native_kernels_agree_with_the_reference(op, batch, n, lengths, dtype):
    arguments = on("cuda", op, batch=batch, n=n, k=min(n // 2, 64), dtype=dtype, lengths=lengths)
    got = run(op, fresh(arguments))
    with vt.backend("reference"):
        want = run(op, fresh(arguments))
    if op in ("scope_select", "coverage_select"):  # near-ties may go either way, and everything after them
        first, second = list(arguments.values())[:2]
        options = {"lengths": arguments["lengths"].cpu()} if lengths else {}
        problems = scope_problems if op == "scope_select" else coverage_problems
        picks = run(op, fresh(arguments) | {"sort": False})
        problem = problems(first.cpu(), second.cpu(), **options)
        check_selection(problem, *(x.cpu() for x in picks))
        assert torch.equal(got[0].where(got[0] >= 0, n).sort(1).values, picks[0].where(picks[0] >= 0, n).sort(1).values)
        return
    for a, b in zip(got, want, strict=True):
        assert (a.dtype, a.shape, a.device) == (b.dtype, b.shape, b.device)
        if a.is_floating_point() and op != "compact_":
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        elif op == "attention_topk":  # the greatest scores, whichever of two equal to rounding comes first
            ranked = [s.gather(1, x.clamp_min(0)).sort(1).values for s, x in ((got[1], a), (want[1], b))]
            torch.testing.assert_close(*ranked, rtol=1e-4, atol=1e-6)
        elif op == "graph_propagate":  # a similarity within rounding of the threshold
            assert (a - b).abs().max() <= 1 and (a != b).float().mean() < 0.01
        else:
            assert torch.equal(a, b)


@each_op
@each_float
def test_image_gives_the_same_bits_alone_and_in_a_batch(op, dtype):
    arguments = on("cuda", op, batch=7, n=576, k=64, dtype=dtype, lengths=True)
    whole = saved(run(op, fresh(arguments)))
    for b in (0, 3, 6):
        assert_same(run(op, rows_of(arguments, [b])), tuple(x[b : b + 1] for x in whole))
    for _ in range(3):
        assert_same(run(op, fresh(arguments)), whole)


@each_op
@pytest.mark.parametrize("layout", ["transposed", "batch_inside", "sliced", "misaligned"])
def test_strides_do_not_matter(op, layout):
    arguments = on("cuda", op, n=129, lengths=True)
    want = saved(run(op, fresh(arguments)))
    assert_same(run(op, replace(arguments, lambda x: arrange(x, layout))), want)


@each_op
def test_float64_is_refused_with_the_fix(op):
    if op == "compact_":
        return  # moves any element
    with pytest.raises((TypeError, RuntimeError, ValueError), match="float64"):
        run(op, on("cuda", op, dtype=torch.float64))


@each_op
@pytest.mark.parametrize(("batch", "n"), [(0, 9), (3, 0)])
def test_empty(op, batch, n):
    for result in run(op, on("cuda", op, batch=batch, n=n, lengths=True)):
        assert result.shape[0] == batch


# ------------------------------------------------------------------------------------------------ streams and devices


@each_op
def test_nothing_waits_for_the_gpu(op):
    arguments = on("cuda", op, n=129, lengths=True)  # a copy to the device waits too
    run(op, fresh(arguments))
    call = fresh(arguments)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(op, call)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_op
def test_work_goes_to_the_callers_stream(op):
    """Behind a long wait on a side stream; a kernel on any other stream would read the poison that is overwritten after it."""
    arguments = on("cuda", op, n=129)
    want = saved(run(op, fresh(arguments)))
    poisoned = replace(arguments, lambda x: torch.zeros_like(x))
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for name, x in poisoned.items():
            if isinstance(x, Tensor):
                x.copy_(arguments[name])
        got = run(op, poisoned)
    side.synchronize()
    assert_same(got, want)


@each_op
def test_streams_run_side_by_side(op):
    arguments = [on("cuda", op, n=129, seed=seed) for seed in range(6)]
    want = [saved(run(op, fresh(x))) for x in arguments]
    torch.cuda.synchronize()
    streams, got = [torch.cuda.Stream() for _ in arguments], []
    for stream, call in zip(streams, arguments, strict=True):
        with torch.cuda.stream(stream):
            got.append(run(op, fresh(call)))
    torch.cuda.synchronize()
    for a, b in zip(got, want, strict=True):
        assert_same(a, b)


@two_devices
@each_op
def test_device_is_the_tensors_not_the_current_one(op):
    want = tuple(x.cpu() for x in run(op, on("cuda:0", op, n=129)))
    with torch.cuda.device(0):
        got = run(op, on("cuda:1", op, n=129))
        assert torch.cuda.current_device() == 0
    assert all(x.device == torch.device("cuda:1") for x in got)
    assert_same(tuple(x.cpu() for x in got), want)


@two_devices
@each_op
def test_tensors_of_two_devices_are_refused(op):
    arguments = on("cuda:0", op, lengths=True)
    *_, last = [name for name, x in arguments.items() if isinstance(x, Tensor)]
    if list(arguments).index(last):
        with pytest.raises(ValueError, match=f"{last} must be on cuda:0 like"):
            run(op, arguments | {last: arguments[last].to("cuda:1")})


@each_op
def test_memory_comes_from_torchs_allocator(op):
    """The first call may load the kernels; after that the device has no less memory free, whatever the sizes."""
    for n in (64, 576):
        run(op, on("cuda", op, n=n))
    torch.cuda.synchronize()
    arguments = [on("cuda", op, n=n) for n in (100, 576, 1000)]
    for call in arguments:
        run(op, fresh(call))
    gc.collect()
    torch.cuda.empty_cache()
    free, held = torch.cuda.mem_get_info()[0], torch.cuda.memory_allocated()
    for call in arguments:
        for _ in range(20):
            run(op, fresh(call))
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() == held
    assert torch.cuda.mem_get_info()[0] >= free - 2**21


@pytest.mark.parametrize("op", [op for op in LAUNCHES if op in OUT])
def test_out_is_written_where_it_lies(op):
    arguments = on("cuda", op, n=129, lengths=True)
    (want,) = saved(run(op, arguments))
    buffer = torch.full([s + 2 for s in want.shape], -99, dtype=want.dtype, device="cuda")
    assert getattr(ops, op).out(**arguments, out=buffer[1:-1, 1:-1]) is None
    assert_same((buffer[1:-1, 1:-1].contiguous(),), (want,))
    assert (buffer == -99).sum() == buffer.numel() - want.numel()


# ------------------------------------------------------------------------------------------------ graphs


@each_op
@pytest.mark.parametrize("n", [17, 576])
def test_graph_replays_with_new_inputs(op, n):
    calls = [on("cuda", op, n=n, seed=seed, lengths=True) for seed in range(4)]
    want = [saved(run(op, fresh(call))) for call in calls]
    place = fresh(calls[0])
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(op, place)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run(op, place)
    for call, answer in [*zip(calls, want, strict=True), (calls[0], want[0])]:
        for name, x in call.items():
            if isinstance(x, Tensor):
                place[name].copy_(x)
        graph.replay()
        torch.cuda.synchronize()
        assert_same(got, answer)


@each_op
def test_reduce_overhead_gives_the_same_bits(op):
    """Inductor's CUDA graphs: the op keeps no memory of its own between calls."""
    torch._dynamo.reset()

    def function(arguments):
        return tuple(x + 0 for x in run(op, replace(arguments, lambda x: x * 1)))

    compiled = torch.compile(function, mode="reduce-overhead", fullgraph=True)
    for seed in range(4):
        arguments = on("cuda", op, n=129, seed=seed, lengths=True)
        want = run(op, fresh(arguments))
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(arguments)
        for a, b in zip(got, want, strict=True):
            assert torch.equal(bits(a), bits(b))


# ------------------------------------------------------------------------------------------------ Triton


@pytest.mark.skipif(not vt.status("triton", "cuda").available, reason=vt.status("triton", "cuda").reason)
def test_compiled_triton_kernels():
    """In a process without Triton's interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    program = Path(__file__).with_name("gpu_triton.py")
    result = subprocess.run([sys.executable, str(program)], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
