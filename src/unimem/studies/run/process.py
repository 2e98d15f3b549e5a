"""A cell's process: `unimem-train`, which holds the cell's lock and ends with its parent."""

import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial

from unimem.overrides import literal
from unimem.runs.signature import CELLS
from unimem.studies.cells import Cell, SweepOptions
from unimem.studies.run.cell_state import begun, finished, log_file, take_lock
from unimem.training.launched import alone
from unimem.words import writing

STARTED = "== started "
"""How the log of a cell marks each of its processes."""

_PR_SET_PDEATHSIG = 1


def start_process(
    cell: Cell, options: SweepOptions, environment: Mapping[str, str]
) -> "subprocess.Popen[bytes] | None":
    """Start a cell's process, from its last checkpoint if there is one.

    The process holds the cell's lock as long as it lives, and does not outlive this one. None if
    another process holds the lock, or if the cell is finished. To be called in the main thread.
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
        command = train_command(cell, options.study, resume, options.tags)
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
