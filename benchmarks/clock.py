"""How one call is timed: by the host or by the device, with warm or cold caches, launched call by call or as a CUDA graph."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]
_SHORT = 0.05  # seconds; a longer call goes through its data so often that what the caches hold before it is no matter
_DELAY, _LONGEST_DELAY = 100_000, 200_000_000  # cycles of the device, about 60 us and 0.1 s
_IN_A_GRAPH = 10  # calls, unless they take long: then what starting a graph costs is no matter


class HostBound(Exception):
    """The host cannot enqueue the whole call ahead of the device, so that the device has no time of its own to measure."""


class CaptureFailed(Exception):
    """A capture was broken off. The allocator's state in this process is no longer that of a fresh one."""


@dataclass(frozen=True)
class Mode:
    """``timing``: what the figure is.

    ``call``: the host's clock until the call returns, on a CPU all of the call; ``finished``: until its work on the GPU is done
    too; ``device``: the work alone, between two events of the GPU. ``cache``: ``warm`` or ``cold``; ``launch``: ``eager`` or
    ``graph``.
    """

    timing: str = "call"
    cache: str = "warm"
    launch: str = "eager"


def modes(device: str, *, cold: bool = False) -> tuple[Mode, ...]:
    """The modes of a run; a GPU is always measured cold as well, it takes no time there."""
    if device != "cuda":
        return (Mode(), Mode(cache="cold")) if cold else (Mode(),)
    device_modes = [Mode("device", cache, launch) for launch in ("eager", "graph") for cache in ("warm", "cold")]
    return (Mode(), Mode("finished"), *device_modes)


class Clock:
    """Times calls on one device; the buffer that empties its caches is made at first use. ``timer`` gives seconds."""

    def __init__(self, device: str, timer: Callable[[], float] = time.perf_counter):
        self.device = torch.device(device)
        self._timer = timer
        self._cuda = self.device.type == "cuda"
        self._spill: torch.Tensor | None = None

    def stopwatch(self, call: Call, mode: Mode, *, last: float, count: int = 1) -> Callable[[], float]:
        """Something that runs ``call`` once in this mode and returns milliseconds, divided by the ``count`` of calls in it.

        ``last``: seconds of the call before. What it returns raises ``HostBound`` where device time cannot be taken.
        """
        delay = _DELAY

        def once() -> float:
            nonlocal last, delay
            while True:
                if mode.cache == "cold":
                    self.empty_caches()
                elif last < _SHORT:
                    call()  # the provider before had the caches to itself
                if mode.timing != "device":
                    milliseconds = self._wall(call, finished=mode.timing == "finished")
                    break
                measured = _between_events(call, delay)
                if measured is not None:
                    milliseconds = measured
                    break
                if delay >= _LONGEST_DELAY:
                    raise HostBound("it waits for the device, or is more launches than a stream takes at a time")
                delay *= 2
            last = 1e-3 * milliseconds
            return milliseconds / count

        return once

    def empty_caches(self) -> None:
        """Writes twice as much as the last cache holds."""
        if self._spill is None:
            self._spill = torch.zeros(2 * last_cache(self.device) // 4, dtype=torch.float32, device=self.device)
        self._spill.add_(1)

    def finished(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Call) -> float:
        """One run of the host's clock, the work on the device included."""
        return 1e-3 * self._wall(call, finished=True)

    def _wall(self, call: Call, *, finished: bool) -> float:
        self.finished()
        begin = self._timer()
        call()
        if finished:
            self.finished()
        return 1e3 * (self._timer() - begin)


def _between_events(call: Call, delay: int) -> float | None:
    """Milliseconds of the device, which first spins for ``delay`` cycles so that the host has enqueued everything by then.

    None where it had not: between the events the device would have waited for the host.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(delay)
    begin.record()
    call()
    end.record()
    late = begin.query()
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return None if late else milliseconds


def calls_in_a_graph(mode: Mode, seconds: float) -> int:
    """How many calls of so many seconds one graph holds. Of cold caches only the first call would see anything."""
    return 1 if mode.cache == "cold" or seconds > 1e-3 else _IN_A_GRAPH


def captured(call: Call, count: int = 1) -> Call:
    """The replay of ``count`` calls as one CUDA graph.

    Not by ``torch.cuda.graph``, which leaves its stream the current one where a capture fails.

    Raises:
        CaptureFailed: the call does what a graph cannot hold.
    """
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    graph, result = torch.cuda.CUDAGraph(), None
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # of an older graph, in the middle of a capture, it would break that
    try:
        with torch.cuda.stream(torch.cuda.Stream()):
            graph.capture_begin()
            try:
                for _ in range(count):
                    result = call()
            finally:
                graph.capture_end()
    except Exception as error:
        cause = error.__context__ or error  # that of the call says more than "capture was invalidated"
        raise CaptureFailed(str(cause)) from error
    finally:
        if collecting:
            gc.enable()

    def replay() -> Any:
        graph.replay()
        return result  # lives as long as the graph that writes it

    return replay


def reads_from_host(call: Call) -> bool:
    """Whether a call on the GPU waits for its results, found out by running it once with torch's waiting made an error."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def last_cache(device: torch.device) -> int:
    """Bytes of the GPU's L2 or of the CPU's last-level cache; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    unit = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * unit[size[-1]] for size in sizes if size[-1:] in unit), default=64 << 20)
