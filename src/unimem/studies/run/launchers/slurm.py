"""Cells as jobs of a Slurm cluster, through submitit."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimem.config import ConfigError
from unimem.studies.cells import Cell, SweepOptions
from unimem.studies.run.cell_state import finished, take_lock
from unimem.studies.run.launch import Launcher
from unimem.studies.run.process import start_process
from unimem.studies.run.runner import ELSEWHERE

GRACE = 120
"""Seconds in which Slurm kills a job, or has it queued again, after its SIGTERM."""


class SlurmRun:
    """A cell's job."""

    def __init__(self, job: Any):
        self._job = job

    def poll(self) -> int | None:
        """Return the exit status of the cell's process, 1 if the job was lost; None before."""
        if not self._job.done():
            return None
        error = self._job.exception()
        return self._job.result() if error is None else 1

    def stop(self) -> None:
        """Cancel the job; Slurm sends SIGTERM, and the cell saves and leaves."""
        self._job.cancel()

    def kill(self) -> None:
        """Cancel the job; Slurm kills what does not leave."""
        self._job.cancel()


class SlurmLauncher(Launcher):
    """Submits a job for each cell, at most `jobs` at a time."""

    executor: Any = None
    """submitit's; `prepare` makes one for Slurm if there is none."""

    @property
    def slots(self) -> int:
        """How many jobs there are at a time: `jobs`, or one for each cell."""
        return self.options.jobs or len(self.runs)

    @property
    def num_gpus(self) -> int:
        """How many GPUs a job asks for."""
        return int(self.options.launcher_settings["gpus_per_node"] or 0)

    def prepare(self) -> None:
        """Make the executor. Raises `ConfigError` where there is no submitit or no Slurm."""
        if any(cell.config.trainer.num_nodes > 1 for cell in self.runs):
            raise ConfigError("launcher=slurm runs a cell on one node; set trainer.num_nodes=1")
        self.executor = self.executor or slurm_executor(self.options)

    def start(self, cell: Cell, slot: int) -> SlurmRun | None:
        """Submit a cell; None if another process has it."""
        lock = take_lock(cell)
        if lock is None:
            return None
        lock.close()  # the job takes it where it runs
        return SlurmRun(self.executor.submit(CellJob(cell=cell, options=self.options)))


@dataclass(kw_only=True)
class CellJob:
    """What runs on the node: the cell's process, and what Slurm wants of it."""

    cell: Cell
    options: SweepOptions

    def __call__(self) -> int:
        """Run the cell, and give its exit status."""
        self._process = start_process(self.cell, self.options, {})
        if self._process is None:
            return 0 if finished(self.cell) else ELSEWHERE
        try:
            while (code := self._process.poll()) is None:
                time.sleep(0.5)
            if code == 128 + signal.SIGTERM:
                # Slurm ends every process of a job: a result would hide that the cell is not done.
                time.sleep(GRACE)
            return code
        finally:
            self._leave()

    def checkpoint(self) -> Any:
        """Save before the time is over or the node is taken, and queue up again."""
        from submitit.helpers import DelayedSubmission

        self._leave()
        return DelayedSubmission(CellJob(cell=self.cell, options=self.options))

    def _leave(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            # Not wait(): the signal may have come while poll() held its lock.
            os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)


def slurm_executor(options: SweepOptions) -> Any:
    """Make submitit's executor. Raises `ConfigError` where there is no submitit or no Slurm."""
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            "launcher=slurm needs submitit: pip install '.[slurm]' in the folder of this project"
        ) from None
    given = {key: value for key, value in options.launcher_settings.items() if value is not None}
    try:
        folder = Path(options.output) / options.study / "slurm"
        executor = submitit.AutoExecutor(folder, cluster="slurm")
        executor.update_parameters(name=options.study, **given)
    except (RuntimeError, NameError, TypeError) as error:
        raise ConfigError(f"launcher=slurm: {' '.join(str(error).split())}") from None
    return executor
