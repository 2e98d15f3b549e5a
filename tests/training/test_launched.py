"""What launchers and Slurm say of a process decides which part of a run it is."""

import re

import pytest

from unimem.config import ConfigError
from unimem.training.cluster import SrunTasks, cluster_environment, explain_lost_process
from unimem.training.launched import alone, rank_of, require_tasks, slurm_job, task_of

JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NNODES": "1"}
BATCH = JOB | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
"""The script of sbatch."""
STEP = BATCH | {"SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_STEP_NODELIST": "n[3-4]"}
"""A task of srun."""
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "LOCAL_RANK": "1", "GROUP_RANK": "1"}


def tasks(rank: int, count: int, **more: str) -> dict[str, str]:
    own = {"SLURM_NTASKS": str(count), "SLURM_STEP_NUM_TASKS": str(count)}
    return STEP | own | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} | more


@pytest.mark.parametrize(
    "environment",
    [
        {},
        JOB,  # the shell of salloc
        JOB | {"SLURM_NTASKS": "2"},
        BATCH,
        BATCH | {"SLURM_NTASKS": "2"},
        BATCH | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2"},
        tasks(0, 1) | {"LOCAL_RANK": "0"},
    ],
)
def test_without_a_launcher_a_process_is_the_first_of_its_run(environment):
    assert task_of(environment) is None and rank_of(environment) == 0
    require_tasks(task_of(environment), 2, 1)
    if environment:
        cluster = cluster_environment(environment)
        assert cluster is not None and not isinstance(cluster, SrunTasks)
        assert cluster.global_rank() == 0 and cluster.world_size() == 1


@pytest.mark.parametrize(
    "environment",
    [
        tasks(1, 2),
        tasks(1, 2, SLURM_JOB_NAME="interactive"),
        tasks(1, 2, SLURM_NTASKS="8"),  # of the job; the step has fewer
        {k: v for k, v in tasks(1, 2).items() if not k.startswith("SLURM_STEP")},
    ],
)
def test_tasks_of_srun_are_processes_of_one_run(environment):
    task = task_of(environment)
    assert task is not None
    assert (task.launcher, task.rank, task.local_rank, task.count) == ("srun", 1, 1, 2)
    assert rank_of(environment) == 1
    require_tasks(task, devices=2, nodes=1)
    require_tasks(task, devices=1, nodes=2)
    cluster = cluster_environment(environment)
    assert isinstance(cluster, SrunTasks) and cluster.creates_processes_externally
    assert (cluster.global_rank(), cluster.world_size()) == (1, 2)
    assert not hasattr(cluster, "auto_requeue")


@pytest.mark.parametrize("rank", [0, 1])
def test_tasks_that_would_each_be_the_whole_run_are_refused(rank):
    with pytest.raises(ConfigError) as error:
        require_tasks(task_of(tasks(rank, 2)), devices=1, nodes=1)
    text = str(error.value)
    assert "srun started 2 tasks, but trainer.devices=1 trainer.num_nodes=1" in text
    assert "--ntasks 1" in text and "env -u SLURM_PROCID unimem-train" in text
    free = {k: v for k, v in tasks(rank, 2).items() if k != "SLURM_PROCID"}
    assert task_of(free) is None and rank_of(free) == 0


def test_one_task_of_srun_is_a_run(monkeypatch):
    require_tasks(task_of(tasks(0, 1)), devices=1, nodes=1)
    with pytest.raises(ConfigError, match="srun started 1 tasks, but trainer.devices=2"):
        require_tasks(task_of(tasks(0, 1)), devices=2, nodes=1)


def test_tasks_find_each_other(monkeypatch):
    for name, value in tasks(1, 2).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    monkeypatch.delenv("MASTER_PORT", raising=False)
    cluster = cluster_environment(tasks(1, 2))
    assert cluster is not None and SrunTasks.detect()
    assert cluster.main_address == "n3" and 15_000 <= cluster.main_port < 32_000
    monkeypatch.setenv("SLURM_STEP_ID", "1")
    other = cluster_environment(tasks(1, 2))
    assert other is not None and other.main_port != 15_000 + 31 * 77
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("MASTER_PORT", "4000")
    assert (cluster.main_address, cluster.main_port) == ("here", 4000)


def test_torchrun_counts_its_processes_also_under_slurm():
    environment = tasks(0, 1) | TORCHRUN | {"WORLD_SIZE": "4"}
    task = task_of(environment)
    assert task is not None and (task.rank, task.local_rank, task.node, task.count) == (3, 1, 1, 4)
    assert rank_of(environment) == 3 and cluster_environment(environment) is None
    with pytest.raises(ConfigError, match="torchrun started 4 tasks"):
        require_tasks(task, devices=2, nodes=1)


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "1"} | BATCH, False),
        ({"RANK": "2"}, False),
    ],
)
def test_processes_that_are_started_one_by_one_have_one_first(environment, first):
    assert (rank_of(environment) == 0) == first


@pytest.mark.parametrize("environment", [tasks(1, 2), TORCHRUN, BATCH | {"MASTER_PORT": "1"}])
def test_a_process_of_its_own_is_the_first_of_its_run(environment):
    own = alone(environment | {"HOME": "/", "RANKING": "1"})
    assert task_of(own) is None and rank_of(own) == 0 and "MASTER_PORT" not in own
    assert own["HOME"] == "/" and own["RANKING"] == "1" and slurm_job(own) == slurm_job(environment)


def test_the_job_is_named_with_its_restarts():
    assert slurm_job({}) is None
    assert slurm_job(JOB) == {"id": "77", "restarts": 0}
    again = JOB | {"SLURM_RESTART_COUNT": "2", "SLURM_ARRAY_JOB_ID": "70"}
    again |= {"SLURM_ARRAY_TASK_ID": "4"}
    assert slurm_job(again) == {"id": "70_4", "restarts": 2}


def test_a_lost_process_is_told_and_no_other_error_is():
    lost = "[pair.cc:537] Read error [127.0.0.1]:12190: Connection reset by peer."
    told = pytest.raises(ChildProcessError, match="another of the 2 processes .*resume=true")
    with told, explain_lost_process(2):
        raise RuntimeError(lost)
    for processes, message in ((1, lost), (2, "shapes differ")):
        with pytest.raises(RuntimeError, match=re.escape(message)), explain_lost_process(processes):
            raise RuntimeError(message)
