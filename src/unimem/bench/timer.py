"""Time and peak memory of a call, and of two calls in turn."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

Call = Callable[[], object]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_LEFT_FREE = 0.1
"""Share of the memory that is available which no case may take."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Measures a call on a device.

    Args:
        device: where it runs.
        threads: of the CPU. With one the CPU time of the process counts, which others on the
            machine disturb least; with more the time on the wall.
    """

    device: torch.device
    threads: int

    @property
    def kind(self) -> str:
        """Return what is counted."""
        if self.device.type == "cuda":
            return "time on the GPU"
        return "CPU time of the process" if self.threads == 1 else "time on the wall"

    def seconds(self, call: Call) -> float:
        """Measure one call."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(self.device)
            return begin.elapsed_time(end) / 1e3
        now = time.process_time if self.threads == 1 else time.perf_counter
        start = now()
        call()
        return now() - start

    def in_turn(self, calls: Mapping[str, Call], repeats: int) -> dict[str, list[float]]:
        """Measure calls in turn, `repeats` times each, after one call of each that is not counted.

        What slows the machine down for a while then slows all of them down.
        """
        for call in calls.values():
            call()
        gc.collect()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(repeats):
            for name, call in calls.items():
                times[name].append(self.seconds(call))
        return times

    def peak_bytes(self, call: Call) -> int | None:
        """Return the most memory that a call holds above what is held before; None if unknown.

        To be called after a call that is not counted, so that what stays is there already. On the
        CPU it is the high-water mark of the resident set, which Linux alone can reset.
        """
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            call()
            torch.cuda.synchronize(self.device)
            return torch.cuda.max_memory_allocated(self.device) - before
        if not _CLEAR_REFS.exists():
            call()
            return None
        # Freed memory that the allocator keeps would be reused and not be seen.
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR_REFS.write_text("5")
        before = _status("VmRSS")
        call()
        return max(_status("VmHWM") - before, 0)


def compared(mine: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Compare seconds with those of the model without memory, measured in turn.

    Gives `ms` and `vanilla_ms`, the least of each, their `ratio`, the median `ratio_median` of the
    ratios of neighbours, the ends `ratio_low` and `ratio_high` of those, and all seconds.
    """
    pairs = [a / max(b, 1e-9) for a, b in zip(mine, base, strict=True)]
    return {
        "ms": min(mine) * 1e3,
        "vanilla_ms": min(base) * 1e3,
        "ratio": min(mine) / max(min(base), 1e-9),
        "ratio_median": median(pairs),
        "ratio_low": min(pairs),
        "ratio_high": max(pairs),
        "seconds": list(mine),
        "vanilla_seconds": list(base),
    }


@contextmanager
def bounded_memory(device: torch.device) -> Iterator[None]:
    """Let an allocation beyond what the machine has raise, instead of the system ending us.

    Only on a CPU under Linux; a GPU raises by itself.
    """
    if device.type != "cpu" or not _STATUS.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = _status("VmSize") + round(_available() * (1 - _LEFT_FREE))
    limits = [limit for limit in (most, *before) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _status(name: str) -> int:
    """Read one size of this process, in bytes."""
    return _kilobytes(_STATUS, name) * 1024


def _available() -> int:
    """Return the bytes of memory that can still be had."""
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024


def _kilobytes(file: Path, name: str) -> int:
    line = next(line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])
