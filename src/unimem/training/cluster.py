"""Lightning's cluster environment under Slurm; Lightning must not queue jobs again."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from unimem.training.launched import Task, task_of

LOST = r"gloo|NCCL|Connection (reset|closed)|Broken pipe"
"""Words in torch's error when another process is lost; torch has no error type for it."""

FIRST_PORT, PORTS = 15_000, 17_000


def cluster_environment(environment: Mapping[str, str]) -> ClusterEnvironment | None:
    """Return the cluster environment of a run in a Slurm job; None leaves it to Lightning.

    Lightning's own detection assumes that every task a job may have is a running process.
    """
    task = task_of(environment)
    if task is not None:
        return SrunTasks(task) if task.launcher == "srun" else None
    return LightningEnvironment() if any(k.startswith("SLURM_") for k in environment) else None


@contextmanager
def explain_lost_process(processes: int) -> Iterator[None]:
    """Raise a clear error if another process of the run ended, which ends this one too.

    Raises ChildProcessError then.
    """
    try:
        yield
    except RuntimeError as error:
        if processes == 1 or not re.search(LOST, str(error)):
            raise
        why = str(error).splitlines()[0]
        raise ChildProcessError(
            f"another of the {processes} processes of this run ended, or cannot be reached "
            f"({why}); what it said stands above, if anything; the run can be continued from its "
            "last checkpoint with resume=true"
        ) from error


class SrunTasks(ClusterEnvironment):
    """The tasks of a Slurm job step; each task is one process of the run."""

    def __init__(self, task: Task):
        super().__init__()
        self._task = task

    @property
    def creates_processes_externally(self) -> bool:
        """Whether all processes were launched already: they were, by srun."""
        return True

    @property
    def main_address(self) -> str:
        """The node of the first task."""
        names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
        nodes = next((os.environ[name] for name in names if name in os.environ), "127.0.0.1")
        return os.environ.get("MASTER_ADDR") or SLURMEnvironment.resolve_root_node_address(nodes)

    @property
    def main_port(self) -> int:
        """A port that every task derives from the ids of the job and the step."""
        if "MASTER_PORT" in os.environ:
            return int(os.environ["MASTER_PORT"])
        job, step = (int(os.environ.get(f"SLURM_{x}_ID", "0")) for x in ("JOB", "STEP"))
        return FIRST_PORT + (31 * job + step) % PORTS

    @staticmethod
    def detect() -> bool:
        """Whether srun started this process."""
        task = task_of(os.environ)
        return task is not None and task.launcher == "srun"

    def world_size(self) -> int:
        """Return the number of tasks."""
        return self._task.count

    def set_world_size(self, size: int) -> None:
        """Do nothing: srun sets it."""

    def global_rank(self) -> int:
        """Return the index among all tasks."""
        return self._task.rank

    def set_global_rank(self, rank: int) -> None:
        """Do nothing: srun sets it."""

    def local_rank(self) -> int:
        """Return the index among the tasks on this node."""
        return self._task.local_rank

    def node_rank(self) -> int:
        """Return the index of this node."""
        return self._task.node
