"""Device time, graphs and broken captures of the benchmarks, on a GPU made up of two clocks."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from functools import partial

import pytest
import torch

_CYCLES = 1700  # a microsecond


class Gpu:
    """The host's clock, at which calls are enqueued, and the time up to which the device has work; microseconds."""

    def __init__(self):
        self.host = self.until = 0.0
        self.stream, self.graph, self.strict = "default", None, False
        self.spins, self.emptied, self.replays, self.synchronized = 0, 0, 0, 0

    def launch(self, host: float, device: float):
        self.host += host
        if self.graph is not None:
            self.graph.append(device)
        else:
            self.until = max(self.until, self.host) + device

    def wait(self):
        """What reading a result back does."""
        if self.graph is not None:
            self.graph.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore of it")
        if self.strict:
            raise RuntimeError("called a synchronizing CUDA operation")
        self.host = max(self.host, self.until)

    def synchronize(self, device=None):
        self.synchronized += 1
        self.host = max(self.host, self.until)

    def spin(self, cycles: int):
        self.spins += 1
        self.launch(2, cycles / _CYCLES)

    @contextmanager
    def on_stream(self, stream):
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before


def event(gpu: Gpu):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            gpu.launch(1, 0)
            self.time = gpu.until

        def query(self):
            return self.time <= gpu.host

        def synchronize(self):
            gpu.host = max(gpu.host, self.time)

        def elapsed_time(self, end):
            return 1e-3 * (end.time - self.time)

    return Event


def graph(gpu: Gpu):
    class Graph(list):
        broken = False

        def capture_begin(self):
            assert gpu.stream != "default" and gpu.graph is None
            gpu.graph = self

        def capture_end(self):
            gpu.graph = None
            if self.broken:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

        def replay(self):
            gpu.replays += 1
            gpu.launch(8, 2 + sum(self))  # a graph takes a while to start

    return Graph


@pytest.fixture
def gpu(monkeypatch, benchmarks):
    made = Gpu()
    clock = benchmarks("clock")
    for name, fake in {
        "Event": event(made),
        "CUDAGraph": graph(made),
        "Stream": lambda: "side",
        "stream": made.on_stream,
        "synchronize": made.synchronize,
        "empty_cache": lambda: None,
        "_sleep": made.spin,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda mode: setattr(made, "strict", mode == "error"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)

    def empty_caches(_):
        made.emptied += 1
        made.launch(4, 60)

    monkeypatch.setattr(clock.Clock, "empty_caches", empty_caches)
    return made


@pytest.fixture
def clock(benchmarks, gpu):
    return benchmarks("clock").Clock("cuda", timer=lambda: 1e-6 * gpu.host)


@pytest.fixture
def mode(benchmarks):
    return benchmarks("clock").Mode


def test_device_time_holds_nothing_of_the_host(gpu, clock, mode):
    """20 us of Python in front of 3 us of work: between events on an empty queue it would look like 20."""
    for cache in ("warm", "cold"):
        watch = clock.stopwatch(partial(gpu.launch, 20, 3), mode("device", cache), last=0)
        assert [watch() for _ in range(3)] == pytest.approx([0.003] * 3)
    assert gpu.spins == 6


def test_call_time_is_the_hosts_until_it_returns_and_until_it_is_finished(gpu, clock, mode):
    call = partial(gpu.launch, 20, 300)
    assert clock.stopwatch(call, mode(), last=0)() == pytest.approx(0.020)
    assert clock.stopwatch(call, mode("finished"), last=0)() == pytest.approx(0.320)
    assert clock.seconds(call) == pytest.approx(320e-6)


@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_the_delay_grows_until_the_host_is_ahead(gpu, clock, mode, cache):
    watch = clock.stopwatch(partial(gpu.launch, 500, 3), mode("device", cache), last=0)
    assert watch() == pytest.approx(0.003)
    first = gpu.spins
    assert first > 1 and gpu.emptied == (first if cache == "cold" else 0)  # the call before has filled the caches
    assert watch() == pytest.approx(0.003) and gpu.spins == first + 1


def test_what_the_host_cannot_get_ahead_of_has_no_device_time(benchmarks, gpu, clock, mode):
    watch = clock.stopwatch(lambda: (gpu.launch(20, 3), gpu.wait()), mode("device"), last=0)
    with pytest.raises(benchmarks("clock").HostBound):
        watch()


def test_a_graph_holds_ten_calls_of_which_one_is_told(benchmarks, gpu, clock, mode):
    module, warm, cold = benchmarks("clock"), mode("device", "warm", "graph"), mode("device", "cold", "graph")
    call = partial(gpu.launch, 20, 3)
    assert module.calls_in_a_graph(warm, 30e-6) == 10
    replay = module.captured(call, 10)
    assert clock.stopwatch(replay, warm, last=0, count=10)() == pytest.approx((10 * 3 + 2) / 10 / 1000)
    assert module.calls_in_a_graph(cold, 30e-6) == 1 == module.calls_in_a_graph(warm, 30e-3)
    assert clock.stopwatch(module.captured(call), cold, last=0)() == pytest.approx(0.005)
    assert gpu.stream == "default"


def test_a_failed_capture_leaves_the_stream_and_says_what_the_call_said(benchmarks, gpu):
    module = benchmarks("clock")
    with pytest.raises(module.CaptureFailed, match="not permitted when stream is capturing"):
        module.captured(gpu.wait, 10)
    assert gpu.stream == "default" and gpu.graph is None


def test_reading_from_the_host_is_found_without_a_capture(benchmarks, gpu):
    reads = benchmarks("clock").reads_from_host
    assert reads(gpu.wait) and not reads(partial(gpu.launch, 1, 1)) and not gpu.strict

    def broken():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        reads(broken)
    assert not gpu.strict


# ------------------------------------------------------------------------------------------------ a whole case


def provider(gpu: Gpu, value: int, host: float, device: float, *, wait: str = ""):
    def call(*_):
        gpu.launch(host, device)
        if wait == "always" or (wait == "captured" and gpu.graph is not None):
            gpu.wait()
        return torch.full((1, 2), value)

    return partial(call, None)


@pytest.fixture
def work(benchmarks, gpu):
    """Makes ours, a loop that reads from the host, one that nobody knows of, and a floor."""
    harness = benchmarks("harness")

    def make(*, flagged=True, loop=7, surprise="", agree=None):
        providers = {
            "vtkernels": provider(gpu, 7, 20, 3),
            "loop": provider(gpu, loop, 400, 200, wait="always"),
            "other": provider(gpu, 7, 40, 6, wait=surprise),
            "memory copy floor": provider(gpu, 0, 5, 1),
        }
        agree = agree or (lambda got, ours: harness.same_picks(got[0], ours[0]))
        return harness.Work(providers, agree, host_readers=frozenset({"loop"} if flagged else ()))

    return make


def measure(benchmarks, clock, work, **options):
    harness = benchmarks("harness")
    modes = benchmarks("clock").modes("cuda")
    return harness.measure(
        harness.Case("topk_select", {"B": 1, "N": 3, "K": 2}, lambda: work), clock, modes, seconds=1e-9, **options
    )


def figures(rows):
    return {(r["provider"], r["timing"], r["cache"], r["launch"]): float(r["p50_ms"]) for r in rows}


@pytest.mark.parametrize("flagged", [True, False])
def test_every_figure_says_what_it_is(benchmarks, gpu, clock, work, flagged):
    said = []
    rows = measure(benchmarks, clock, work(flagged=flagged), say=said.append)
    found = figures(rows)
    assert found["vtkernels", "call", "warm", "eager"] == pytest.approx(0.020)
    assert found["vtkernels", "finished", "warm", "eager"] == pytest.approx(0.023)
    assert (
        found["vtkernels", "device", "warm", "eager"] == found["vtkernels", "device", "cold", "eager"] == pytest.approx(0.003)
    )
    assert found["vtkernels", "device", "warm", "graph"] == pytest.approx(0.0032)
    assert found["vtkernels", "device", "cold", "graph"] == pytest.approx(0.005)
    assert found["memory copy floor", "device", "warm", "graph"] == pytest.approx(0.0012)
    assert {key[1] for key in found if key[0] == "loop"} == {"call", "finished"}
    assert said == ["loop: no device time: it reads from the host"]
    gates = {row["provider"]: row["gate"] for row in rows}
    assert gates == {"vtkernels": "same", "loop": "same", "other": "same", "memory copy floor": ""}


def test_a_red_gate_keeps_its_figures(benchmarks, gpu, clock, work):
    rows = measure(benchmarks, clock, work(loop=8))
    gates = {row["provider"]: row["gate"] for row in rows}
    assert gates["loop"] == "red: 100.0% of the picks differ" and gates["vtkernels"] == "red: loop: 100.0% of the picks differ"
    assert gates["other"] == "same" and all(row["p50_ms"] for row in rows)
    assert benchmarks("harness").complaints(rows) == [
        "red gate: topk_select, B 1, N 3, K 2: vtkernels and others differ: loop: 100.0% of the picks differ"
    ]


def test_a_failed_capture_ends_the_measuring_before_it_began(benchmarks, gpu, clock, work):
    harness = benchmarks("harness")
    with pytest.raises(harness.NotCaptured, match="other: no CUDA graph: CUDA error: operation not permitted"):
        measure(benchmarks, clock, work(surprise="captured"))
    assert gpu.spins == 0
    found = figures(measure(benchmarks, clock, work(surprise="captured"), eager_only=["other"]))
    assert found["other", "device", "warm", "eager"] == pytest.approx(0.006)
    assert ("other", "device", "warm", "graph") not in found and found["vtkernels", "device", "warm", "graph"] > 0


def test_a_provider_that_raises_costs_its_own_row(benchmarks, gpu, clock, work):
    made = work()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    made.providers["other"] = full
    rows = measure(benchmarks, clock, made)
    (lost,) = (row for row in rows if row["provider"] == "other")
    assert lost["gate"] == "failed: out of memory" and lost["p50_ms"] == ""
    assert ("vtkernels", "device", "warm", "graph") in figures([row for row in rows if row["p50_ms"]])
    assert next(set(providers) for _, providers in benchmarks("harness").by_case(rows)) == {
        "vtkernels", "loop", "memory copy floor",
    }  # fmt: skip


class Replaced(Exception):
    """Instead of ``os.execv``."""


@pytest.fixture
def ops(benchmarks, gpu, monkeypatch, tmp_path, threads):
    """``bench ops`` on the made-up GPU, with two cases whose work is given; a process that starts again raises ``Replaced``."""
    threads(1)
    module, harness, clock = benchmarks("ops"), benchmarks("harness"), benchmarks("clock")
    monkeypatch.setattr(module, "use_device", lambda options: "cuda")
    monkeypatch.setattr(module, "Clock", partial(clock.Clock, timer=lambda: 1e-6 * gpu.host))
    monkeypatch.setattr(module, "spoilt", lambda device: gpu.stream == "lost")

    def replaced(*arguments):
        raise Replaced(*arguments)

    monkeypatch.setattr(module, "start_again", replaced)

    def run(first, second, *arguments):
        works = [first, second]
        todo = [harness.Case("topk_select", {"B": 1, "N": n, "K": 2}, lambda n=n: works[n - 1]()) for n in (1, 2)]
        monkeypatch.setattr(module, "headlines", lambda given: todo)
        out = tmp_path / "gpu.csv"
        given = ["ops", "--headline", "--device", "cuda", "--seconds", "1e-9", "--out", str(out), *arguments]
        given += ["--watched", str(tmp_path / "case")]
        try:
            code = benchmarks("__main__").main(given)
        except Replaced as again:
            code = list(again.args)
        return code, harness.load(out) if out.exists() else []

    return run


def test_a_failed_capture_starts_a_fresh_process_at_its_case(ops, work):
    code, rows = ops(work, partial(work, surprise="captured"))
    assert code == ["--start", "2", "--crashed", "", "--eager-only", "other"]
    assert {row["N"] for row in rows} == {"1"}
    code, rows = ops(work, partial(work, surprise="captured"), *code)
    assert code == 0 and {row["N"] for row in rows} == {"1", "2"}
    launches = {(row["N"], row["launch"]) for row in rows if row["provider"] == "other"}
    assert launches == {("1", "eager"), ("1", "graph"), ("2", "eager")}


def test_a_gpu_that_is_lost_costs_one_case(ops, gpu, work):
    def lost():
        gpu.stream = "lost"
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    code, rows = ops(lost, work)
    assert code == ["--start", "2", "--crashed", "", "--red"]
    assert [row["gate"] for row in rows] == ["failed: RuntimeError: CUDA error: an illegal memory access was encountered"]
    gpu.stream = "default"
    code, rows = ops(lost, work, *code)
    assert code == 1 and {row["N"] for row in rows if row["p50_ms"]} == {"2"}


def test_rows_are_there_after_every_case(ops, work):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ops(partial(work, loop=8), interrupt)
    code, rows = ops(work, work, "--start", "2")  # the rows of the first case are those of the run before
    assert code == 1 and {row["gate"] for row in rows if row["N"] == "1" and row["provider"] == "loop"} == {
        "red: 100.0% of the picks differ"
    }
    assert {row["N"] for row in rows} == {"1", "2"}


# ------------------------------------------------------------------------------------------------ processes


@pytest.fixture
def watched(benchmarks, monkeypatch, tmp_path):
    """Runs a script in place of the command: three cases, of which the second does something; returns the code and its log."""
    process = benchmarks("process")

    def run(second: str, limit: float = 30.0):
        log = tmp_path / "log"
        script = f"""
import argparse, os, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--start", type=int, default=1)
parser.add_argument("--crashed", default="")
parser.add_argument("--red", action="store_true")
parser.add_argument("--watched")
given = parser.parse_args()
with open({str(log)!r}, "a") as log:
    print("begin", given.start, given.crashed, file=log)
for case in range(given.start, 4):
    with open(given.watched, "w") as place:
        place.write(str(case))
    if case == 2:
        {second}
    with open({str(log)!r}, "a") as log:
        print("case", case, file=log)
sys.exit(3)
"""
        monkeypatch.setattr(process, "command", lambda: [sys.executable, "-c", script])
        return process.watched(limit), log.read_text().splitlines()

    return run


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_crash_costs_one_case(watched, name):
    code, log = watched(f"os.kill(os.getpid(), signal.{name})")
    assert code == 3 and log == ["begin 1 ", "case 1", f"begin 3 {name}", "case 3"]


def test_a_case_without_end_costs_one_case(watched):
    code, log = watched("time.sleep(600)", limit=1.0)
    assert code == 3 and log == ["begin 1 ", "case 1", "begin 3 no end after 1 s", "case 3"]


def test_what_was_told_to_stop_stops(watched):
    code, log = watched("os.kill(os.getpid(), signal.SIGTERM)")
    assert code == 128 + 15 and log == ["begin 1 ", "case 1"]
    assert watched("pass")[0] == 3


def test_a_crashed_case_is_a_row_even_the_last(ops, work):
    assert ops(work, work)[0] == 0
    code, rows = ops(work, work, "--start", "3", "--crashed", "SIGSEGV", "--dtype", "float16")
    assert code == 1 and (rows[-1]["N"], rows[-1]["dtype"], rows[-1]["gate"]) == ("2", "float16", "failed: Crashed: SIGSEGV")


def test_only_a_gpu_is_watched(benchmarks, monkeypatch, threads):
    ops = benchmarks("ops")
    monkeypatch.setattr(ops, "watched", lambda limit: 40 + int(limit))
    monkeypatch.setattr(ops._arguments, "torch_device", torch.device)
    main = benchmarks("__main__").main
    assert main(["ops", "--quick", "--op", "row_topk", "--device", "cuda", "--limit", "2"]) == 42
    assert main(["ops", "--quick", "--op", "row_topk", "--seconds", "0.01", "--threads", "1"]) == 0


def test_scaling_stops_after_a_failed_capture(benchmarks, gpu, clock, work, monkeypatch, threads, tmp_path, capsys):
    threads(1)
    scaling, harness = benchmarks("scaling"), benchmarks("harness")
    monkeypatch.setattr(scaling, "use_device", lambda options: "cuda")
    monkeypatch.setattr(scaling, "Clock", lambda device: clock)
    monkeypatch.setattr(scaling, "spoilt", lambda device: False)
    points = []

    def build(point):
        points.append(point.N)
        made = work()
        ours = provider(gpu, 7, 20, 3, wait="captured" if point.N == 288 else "")
        return harness.Work({"vtkernels": ours, "memory copy floor": made.providers["memory copy floor"],
                             "reference": made.providers["other"]}, made.agree)  # fmt: skip

    monkeypatch.setitem(scaling.SUBJECTS, "topk_select", scaling.Subject("N", build))
    out = tmp_path / "scaling.csv"
    arguments = ["--quick", "--device", "cuda", "--op", "topk_select", "--seconds", "1e-9", "--no-memory", "--out", str(out)]
    assert benchmarks("__main__").main(["scaling", *arguments]) == 1
    rows = harness.load(out)
    assert points == [144, 288] and "the rest was not measured" in capsys.readouterr().err
    assert [(row["provider"], row["timing"], row["launch"]) for row in rows if row["N"] == "144"] == [
        ("vtkernels", "device", "graph"), ("memory copy floor", "device", "graph"),
    ]  # fmt: skip
    assert "NotCaptured" in rows[-1]["gate"]
