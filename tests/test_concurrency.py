"""Threads, processes and interruptions: the same bits, whoever else calls at the same time and wherever the call is made."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import EXAMPLES, assert_same, bits, example, run

import vtkernels as vt

THREADS = 16
SIZES = ((1, 33, torch.float32), (5, 17, torch.bfloat16), (2, 70, torch.float16), (3, 129, torch.float64))
each_example = pytest.mark.parametrize("op", EXAMPLES)


@pytest.fixture(autouse=True)
def automatic():
    with vt.backend("auto"):
        yield


def calls(op: str) -> list[Callable[[], tuple[torch.Tensor, ...]]]:
    """One call of each size."""
    return [
        lambda batch=batch, n=n, dtype=dtype: run(op, example(op, batch=batch, n=n, dtype=dtype, lengths=True))
        for batch, n, dtype in SIZES
    ]


# ------------------------------------------------------------------------------------------------ threads


def test_all_ops_at_the_same_time_in_many_threads():
    """Sixteen threads go through all calls, each beginning elsewhere, so that different ops and sizes run side by side."""
    work = [call for op in EXAMPLES for call in calls(op)]
    want = [call() for call in work]
    gate = threading.Barrier(THREADS)

    def go_round(thread: int) -> int:
        gate.wait(60)
        begin = thread * len(work) // THREADS
        for i in (*range(begin, len(work)), *range(begin)):
            assert_same(work[i](), want[i])
        return len(work)

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(go_round, range(THREADS))) == [len(work)] * THREADS


@each_example
def test_same_input_tensors_in_many_threads(op):
    """Inputs are only read: threads may share them. ``compact_`` writes, so each thread has tokens of its own."""
    shared = example(op, batch=3, n=65, lengths=True)
    (want,) = [run(op, copy.deepcopy(shared))]

    def once(_: int) -> None:
        own = {**shared, "tokens": shared["tokens"].clone()} if op == "compact_" else shared
        assert_same(run(op, own), want)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(once, range(2 * THREADS)))


def test_number_of_threads_changes_while_others_call(threads):
    """``torch.set_num_threads`` holds for the thread that calls it, and no count changes a bit."""
    work = [call for op in EXAMPLES for call in calls(op)[2:]]
    want = [call() for call in work]

    def with_count(count: int) -> None:
        for i, call in enumerate(work):
            torch.set_num_threads(1 + (count + i) % 4)
            assert_same(call(), want[i])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(with_count, range(8)))


def test_backend_holds_for_every_thread():
    """The choice belongs to the process, not to a thread or a context: the dispatcher has one table."""
    seen = []
    with vt.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(vt.which("topk_select")))
        thread.start()
        thread.join()
    assert seen == ["reference"]


@each_example
def test_inference_mode_and_no_grad_give_the_same_bits(op):
    for call in calls(op):
        want = call()
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                assert_same(call(), want)


# ------------------------------------------------------------------------------------------------ processes


def digest(op: str) -> list[list[int]]:
    """The bits of all calls of an op, to be sent to another process."""
    return [bits(x).flatten().tolist() for call in calls(op) for x in call()]


def digests(ops: tuple[str, ...]) -> list[list[list[int]]]:
    return [digest(op) for op in ops]


FEW = ("scope_select", "attention_topk", "crop_topk", "merge_tokens")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_new_processes_give_the_same_bits(method):
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(digests, [FEW, FEW]) == [digests(FEW)] * 2


def python(code: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
    search = os.pathsep.join([str(Path(vt.__file__).parents[1]), str(Path(__file__).parent)])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "PYTHONPATH": search},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


FORKED = """
    import os, signal, sys, torch, vtkernels as vt
    torch.set_num_threads(2)
    features, numbers = torch.randn(2, 600, 64), torch.randn(3_000_000)
    calls = {
        "vtkernels": lambda: vt.scope_select(features, None, 20).sum().item(),
        "torch": lambda: numbers.exp().argmax().item(),
    }
    before, after, alone = sys.argv[1:]
    if before != "nothing":
        calls[before]()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        if alone == "alone":
            torch.set_num_threads(1)
        got = calls[after]()
        os._exit(0 if isinstance(got, int) else 1)
    print(os.waitpid(child, 0)[1], end="")
"""


@pytest.mark.parametrize(("before", "alone"), [("nothing", "together"), ("vtkernels", "alone"), ("torch", "alone")])
def test_forked_process(before, alone):
    """After a fork: at once where no parallel work was done before it, else on one thread."""
    assert python(FORKED, before, "vtkernels", alone).stdout == "0"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
def test_fork_after_parallel_work_hangs_as_torch_itself_does():
    """GNU OpenMP's threads do not live on in the child. Should torch's own operators ever not hang, ours must not either."""
    code = FORKED.replace("signal.alarm(20)", "signal.alarm(3)")
    theirs = python(code, "torch", "torch", "together").stdout
    ours = python(code, "torch", "vtkernels", "together").stdout
    assert theirs in ("0", str(int(signal.SIGALRM)))
    assert ours in (theirs, "0")


class Choices(torch.utils.data.Dataset):
    """A data set that chooses tokens in its workers."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, i: int) -> torch.Tensor:
        return run("scope_select", example("scope_select", n=129, seed=i))[0]


def test_data_loader_workers_give_the_same_bits():
    """Its workers are forks, and run torch on one thread each."""
    want = [Choices()[i] for i in range(6)]
    for got, one in zip(torch.utils.data.DataLoader(Choices(), batch_size=None, num_workers=2), want, strict=True):
        assert_same((got,), (one,))


# ------------------------------------------------------------------------------------------------ interruptions


def test_keyboard_interrupt_arrives():
    """Between two calls, as with any operator: a kernel is not cut short, and nothing swallows the exception."""
    # A shell starts what it runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            end = time.monotonic() + 60
            while time.monotonic() < end:
                run("topk_select", example("topk_select", n=65))
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    run("topk_select", example("topk_select", n=65))


def test_error_in_one_thread_leaves_the_others_alone():
    want = run("scope_select", example("scope_select", n=65))

    def good_or_bad(i: int) -> None:
        if i % 2:
            with pytest.raises(ValueError, match="k must be between 0 and N = 65, got 66"):
                run("scope_select", {**example("scope_select", n=65), "k": 66})
        else:
            assert_same(run("scope_select", example("scope_select", n=65)), want)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(good_or_bad, range(64)))


# ------------------------------------------------------------------------------------------------ models


def test_two_models_pruned_in_two_threads():
    """Each thread prunes, generates with and restores a model of its own; both are the same as one after the other."""
    models = pytest.importorskip("models", reason="transformers is not installed")
    pair = [models.llava(seed=seed) for seed in (0, 1)]
    inputs = models.inputs(pair[0], [[8, "image", 9]])
    methods = (vt.Scope(), vt.FoPru())

    def generate(i: int) -> tuple[torch.Tensor, ...]:
        with vt.prune(pair[i], methods[i], keep=5) as pruning:
            tokens = pair[i].generate(**inputs, max_new_tokens=4, do_sample=False)
            return tokens, *pruning.last.indices

    want = [generate(i) for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            for got, one in zip(pool.map(generate, range(2)), want, strict=True):
                assert_same(got, one)
