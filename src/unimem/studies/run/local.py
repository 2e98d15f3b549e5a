"""Cells as processes of this machine: one each, in slots with a GPU or a share of the cores."""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property, partial

from unimem.overrides import literal
from unimem.runs.signature import CELLS
from unimem.studies.cells import Cell
from unimem.studies.run.cell_state import begun, finished, log_file, take_lock
from unimem.training.launched import alone
from unimem.words import writing

STARTED = "== started "
"""How the log of a cell marks each of its processes."""

_PR_SET_PDEATHSIG = 1


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


class LocalLauncher:
    """Starts cells on this machine, `slots` at a time."""

    def __init__(
        self, cells: Sequence[Cell], group: str, jobs: int | None, tags: Sequence[str] = ()
    ):
        self._group, self._jobs, self._tags = group, jobs, tags
        self._settings = [cell.config.trainer for cell in cells]

    @property
    def slots(self) -> int:
        """How many cells run at a time: `jobs`, or as many as the machine suffices for.

        That is by GPUs, or by cores if every cell says how many threads it takes; else one.
        """
        if self._jobs or self.gpus:
            return self._jobs or max(1, len(self.gpus) // self._width)
        threads = [settings.threads for settings in self._settings]
        if None in threads:
            return 1
        return max(1, num_cores() // (self._width * max(t for t in threads if t is not None)))

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
        process = spawn(cell, self._group, self.environment(cell, slot), self._tags)
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


def spawn(
    cell: Cell, group: str, environment: Mapping[str, str], tags: Sequence[str] = ()
) -> "subprocess.Popen[bytes] | None":
    """Start a cell's process, from its last checkpoint if there is one.

    The process holds the cell's lock as long as it lives, and does not outlive this one. None if
    another process holds the lock, or if the cell is finished. `group` and `tags` are of its run
    in W&B. To be called in the main thread.
    """
    lock = take_lock(cell)
    if lock is None:
        return None
    with lock:
        if finished(cell):
            return None
        resume = begun(cell)
        if not resume and cell.folder.exists():
            shutil.rmtree(cell.folder)  # killed before it recorded its settings
        command = train_command(cell, group, resume, tags)
        with writing(log_file(cell)), log_file(cell).open("a", encoding="utf-8") as log:
            now = datetime.now().isoformat(" ", "seconds")
            print(f"{STARTED}{now}: {shlex.join(command)}", file=log, flush=True)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=alone(os.environ) | dict(environment),
                start_new_session=True,
                pass_fds=[lock.fileno()],
                preexec_fn=partial(_die_with_parent, os.getpid(), ctypes.CDLL(None)),
            )


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


def train_command(cell: Cell, group: str, resume: bool, tags: Sequence[str] = ()) -> list[str]:
    """Return the command that runs a cell; `group` and `tags` are of its run in W&B."""
    own = [
        f"output={literal(str(cell.folder.parent.parent))}",
        f"study={CELLS}",
        f"name={cell.folder.name}",
    ]
    if cell.config.logger.group is None:
        own.append(f"logger.group={group}")
    if tags:
        own.append(f"logger.tags={literal([*cell.config.logger.tags, *tags])}")
    if resume:
        own.append("resume=true")
    return [sys.executable, "-m", "unimem.cli.train", *cell.overrides.lines, *own]


def _die_with_parent(parent: int, libc: ctypes.CDLL) -> None:
    """Run between fork and exec: the kernel kills this process when `parent` ends."""
    # A batch system tells all processes of a job of its end; the parent sees to that.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    if sys.platform == "linux":
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
