"""Runs as a cluster starts them: real processes with the variables that Slurm sets."""

import os
import stat
import time

import pytest
from training.conftest import metrics
from training.test_launched import BATCH, tasks

from unimem.runs.records import read_result

pytestmark = pytest.mark.slow

DDP = ("name=a", "trainer.devices=2", "trainer.batch_size=1", "trainer.max_steps=4")


@pytest.fixture
def commands(tmp_path):
    """A folder with the commands of a cluster, which record how they are called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("scontrol", "sbatch", "srun"):
        path = folder / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def test_script_of_a_job_of_two_tasks_trains_once(runs, start, commands):
    environment = BATCH | {"SLURM_NTASKS": "2", "SLURM_RESTART_COUNT": "2"} | commands
    process = start("name=a", "trainer.max_steps=2", **environment)
    out, log = process.communicate(timeout=300)
    assert process.returncode == 0, log
    assert "job 77, restarted 2 times" in out
    assert read_result(runs.output / "runs" / "a")["slurm_job"] == {"id": "77", "restarts": 2}


def test_two_tasks_of_srun_are_one_run(runs, start, commands):
    more = commands | {"MASTER_ADDR": "127.0.0.1"}
    both = [start(*DDP, **tasks(rank, 2), **more) for rank in (0, 1)]
    for process in both:
        _, log = process.communicate(timeout=300)
        assert process.returncode == 0, log
    assert [path.name for path in (runs.output / "runs").iterdir()] == ["a"]
    assert len(metrics(runs.output / "runs" / "a")) == 4


def test_warning_of_a_batch_system_saves_and_queues_nothing(runs, start, commands, tmp_path):
    process = start("name=a", "resume=auto", "trainer.max_steps=3000", **tasks(0, 1), **commands)
    run = runs.output / "runs" / "a"
    deadline = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(10)  # SIGUSR1
    out, log = process.communicate(timeout=60)
    assert process.returncode == 128 + 10, log
    assert "the same command continues the run" in out
    assert not [*tmp_path.rglob("hpc_ckpt*")] and not (tmp_path / "calls").exists()
