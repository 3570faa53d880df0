"""How one call is timed: by the host or by the device, with warm or cold caches, launched call by call or as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], Any]
_SHORT = 0.05  # seconds; a longer call goes through its data so often that what the caches hold before it is no matter


@dataclass(frozen=True)
class Mode:
    """``timing``: ``host`` (on a CPU all of the call, on a GPU until it returns) or ``device``; ``cache``: ``warm`` or
    ``cold``; ``launch``: ``eager`` or ``graph``."""

    timing: str = "host"
    cache: str = "warm"
    launch: str = "eager"


def modes(device: str, *, cold: bool = False) -> tuple[Mode, ...]:
    """The modes of a run; a GPU is always measured cold as well, it takes no time there."""
    if device != "cuda":
        return (Mode(), Mode(cache="cold")) if cold else (Mode(),)
    device_modes = [Mode("device", cache, launch) for launch in ("eager", "graph") for cache in ("warm", "cold")]
    return (Mode(), *device_modes)


class Clock:
    """Times calls on one device; the buffer that empties its caches is made at first use. ``timer`` gives seconds."""

    def __init__(self, device: str, timer: Callable[[], float] = time.perf_counter):
        self.device = torch.device(device)
        self._timer = timer
        self._cuda = self.device.type == "cuda"
        self._spill: torch.Tensor | None = None

    def stopwatch(self, call: Call, mode: Mode, *, last: float) -> Callable[[], float]:
        """Something that runs ``call`` once in this mode and returns milliseconds; ``last``: seconds of the call before."""
        read = self._events if mode.timing == "device" else self._wall

        def once() -> float:
            nonlocal last
            if mode.cache == "cold":
                self.empty_caches()
            elif last < _SHORT:
                call()  # the provider before had the caches to itself
            milliseconds = read(call)
            last = 1e-3 * milliseconds
            return milliseconds

        return once

    def empty_caches(self) -> None:
        """Writes twice as much as the last cache holds."""
        if self._spill is None:
            self._spill = torch.zeros(2 * last_cache(self.device) // 4, dtype=torch.float32, device=self.device)
        self._spill.add_(1)

    def finished(self) -> None:
        if self._cuda:
            torch.cuda.synchronize(self.device)

    def _wall(self, call: Call) -> float:
        self.finished()
        begin = self._timer()
        call()
        return 1e3 * (self._timer() - begin)

    def _events(self, call: Call) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        milliseconds: float = begin.elapsed_time(end)
        return milliseconds


def captured(call: Call) -> Call:
    """The replay of a call as a CUDA graph; raises where it reads from the host, as some published computations do."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()

    def replay() -> Any:
        graph.replay()
        return result  # lives as long as the graph that writes it

    return replay


def last_cache(device: torch.device) -> int:
    """Bytes of the GPU's L2 or of the CPU's last-level cache; 64 MiB where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    unit = {"K": 1 << 10, "M": 1 << 20}
    return max((int(size[:-1]) * unit[size[-1]] for size in sizes if size[-1:] in unit), default=64 << 20)
