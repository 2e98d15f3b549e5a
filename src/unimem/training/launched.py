"""How the processes of a run were started, from the variables of launchers and of Slurm."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unimem.config import ConfigError

OF_LAUNCHERS = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
    "SLURM_NTASKS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_STEPID",
)
"""Environment variables that give the rank of a process."""

_PREFIXES = ("TORCHELASTIC_", "SLURM_STEP_", "JSM_NAMESPACE_")


@dataclass(frozen=True, kw_only=True)
class Task:
    """The rank of this process among those that a launcher started with the same command."""

    launcher: str
    """`srun` or `torchrun`."""
    rank: int
    """From 0, over all nodes."""
    local_rank: int
    """From 0, on this node."""
    node: int
    """From 0."""
    count: int
    """Number of tasks on all nodes."""


def task_of(environment: Mapping[str, str]) -> Task | None:
    """Return which task of torchrun or of srun this process is; None if they did not start it.

    The script of a batch job is not a task: it runs once, however many tasks the job may have, with
    SLURM_PROCID=0 but without the variables of a job step, which srun sets. A process that another
    process of the run started is not a task either: it has a LOCAL_RANK.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return Task(
            launcher="torchrun",
            rank=_number(environment, "RANK"),
            local_rank=_number(environment, "LOCAL_RANK"),
            node=_number(environment, "GROUP_RANK"),
            count=_number(environment, "WORLD_SIZE", 1),
        )
    if "LOCAL_RANK" in environment or "SLURM_PROCID" not in environment:
        return None
    rank = _number(environment, "SLURM_PROCID")
    if not rank and not any(name in environment for name in _OF_STEPS):
        return None
    tasks = _number(environment, "SLURM_NTASKS", 1)
    return Task(
        launcher="srun",
        rank=rank,
        local_rank=_number(environment, "SLURM_LOCALID"),
        node=_number(environment, "SLURM_NODEID"),
        count=_number(environment, "SLURM_STEP_NUM_TASKS", tasks),
    )


_OF_STEPS = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS")


def as_given(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """Return the arguments without what Lightning adds for the other processes of a run.

    Lightning adds Hydra's output folders, which are not used here.
    """
    added = ("hydra.run.dir=", "hydra.job.name=", "hydra.output_subdir=")
    if "LOCAL_RANK" not in environment:
        return list(arguments)
    return [line for line in arguments if not line.startswith(added)]


def rank_of(environment: Mapping[str, str]) -> int:
    """Return the rank of this process in its run, as far as variables say it; 0 if they do not.

    If the processes of several nodes are started one by one, only the first has rank 0.
    """
    task = task_of(environment)
    if task is not None:
        return task.rank
    for name in ("RANK", "JSM_NAMESPACE_RANK"):
        if name in environment:
            return _number(environment, name)
    node = _number(environment, "NODE_RANK", _number(environment, "GROUP_RANK"))
    return max(_number(environment, "LOCAL_RANK"), node)


def require_tasks(task: Task | None, devices: int, nodes: int) -> None:
    """Refuse tasks that would each run the whole run beside each other.

    Raises `ConfigError` if a launcher started other than `devices` x `nodes` tasks.
    """
    if task is None or task.count == devices * nodes:
        return
    how = "--ntasks" if task.launcher == "srun" else "--nnodes times --nproc-per-node"
    variable = "SLURM_PROCID" if task.launcher == "srun" else "TORCHELASTIC_RUN_ID"
    raise ConfigError(
        f"{task.launcher} started {task.count} tasks, but trainer.devices={devices} "
        f"trainer.num_nodes={nodes} is a run of {devices * nodes}: set them so that their product "
        f"is {task.count}, or give {task.launcher} {how} {devices * nodes}; to give each task "
        f"a run of its own, start it by: env -u {variable} unimem-train"
    )


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without launcher variables, for a process that is its own run."""
    return {
        k: v
        for k, v in environment.items()
        if k not in OF_LAUNCHERS and not k.startswith(_PREFIXES)
    }


def slurm_job(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the id of the Slurm job and its number of restarts; None outside of a job."""
    if "SLURM_JOB_ID" not in environment:
        return None
    array = environment.get("SLURM_ARRAY_JOB_ID")
    task = environment.get("SLURM_ARRAY_TASK_ID")
    return {
        "id": environment["SLURM_JOB_ID"] if array is None else f"{array}_{task}",
        "restarts": _number(environment, "SLURM_RESTART_COUNT"),
    }


def _number(environment: Mapping[str, str], name: str, default: int = 0) -> int:
    value = environment.get(name, "")
    return int(value) if value.isdecimal() else default
