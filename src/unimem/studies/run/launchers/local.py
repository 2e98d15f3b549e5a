"""Cells as processes of this machine: one each, in slots with a GPU or a share of the cores."""

import os
import signal
import subprocess
import sys
from functools import cached_property

from unimem.settings import TrainerSettings
from unimem.studies.cells import Cell
from unimem.studies.run.launch import Launcher
from unimem.studies.run.process import start_process


class LocalRun:
    """A cell's process."""

    def __init__(self, process: subprocess.Popen[bytes]):
        self._process = process

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to save and leave."""
        if self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End it and what it started."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)


class LocalLauncher(Launcher):
    """Starts cells on this machine."""

    @property
    def slots(self) -> int:
        """How many cells run at a time: `jobs`, or as many as the machine suffices for.

        That is by GPUs, or by cores if every cell says how many threads it takes; else one.
        """
        jobs = self.options.jobs
        if jobs or self.gpus:
            return jobs or max(1, len(self.gpus) // self._width)
        threads = [settings.threads for settings in self._settings]
        if None in threads:
            return 1
        return max(1, num_cores() // (self._width * max(t for t in threads if t is not None)))

    @property
    def num_gpus(self) -> int:
        """How many GPUs this machine has for its cells."""
        return len(self.gpus)

    @cached_property
    def _settings(self) -> list[TrainerSettings]:
        return [cell.config.trainer for cell in self.runs]

    @cached_property
    def gpus(self) -> list[str]:
        """The GPUs that the cells share, as CUDA_VISIBLE_DEVICES names them."""
        return [] if all(s.accelerator == "cpu" for s in self._settings) else visible_gpus()

    @cached_property
    def _width(self) -> int:
        """How many devices the widest cell uses."""
        widths = (len(self.gpus) if s.devices == "auto" else s.devices for s in self._settings)
        return max(1, *widths)

    def start(self, cell: Cell, slot: int) -> LocalRun | None:
        """Start a cell; None if another process has it, or just finished it."""
        process = start_process(cell, self.options, self.environment(cell, slot))
        return None if process is None else LocalRun(process)

    def environment(self, cell: Cell, slot: int) -> dict[str, str]:
        """Return the slot's GPUs, or its share of the cores unless the user has set threads."""
        settings = cell.config.trainer
        if self.gpus and settings.accelerator != "cpu":
            first = slot * self._width
            own = [self.gpus[i % len(self.gpus)] for i in range(first, first + self._width)]
            return {"CUDA_VISIBLE_DEVICES": ",".join(dict.fromkeys(own))}
        if settings.threads is not None or "OMP_NUM_THREADS" in os.environ:
            return {}
        share = num_cores() // (self.slots * self._width)
        return {"OMP_NUM_THREADS": str(max(1, share))}


def visible_gpus() -> list[str]:
    """Name the GPUs that a child may use, as CUDA_VISIBLE_DEVICES names them."""
    # Asked in a process of its own: this one stays small and without threads.
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=True,  # Ctrl-C is for this process
    )
    count = int(done.stdout)
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


def num_cores() -> int:
    """Count the cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
