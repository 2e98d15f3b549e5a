import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from studies.conftest import TINY

from unimem.config import ConfigError
from unimem.runs.records import read_result
from unimem.studies.run.cell_state import finished
from unimem.studies.run.display import Lines
from unimem.studies.run.launchers.slurm import SlurmLauncher, slurm_executor
from unimem.studies.run.runner import Runner
from unimem.studies.study import expand

submitit = pytest.importorskip("submitit")


def test_without_a_cluster_it_says_so(tmp_path):
    study = expand([*TINY, f"output={tmp_path}", "launcher=slurm"])
    with pytest.raises(ConfigError, match="launcher=slurm: "):
        slurm_executor(study.options)


def test_one_node_for_a_cell():
    study = expand([*TINY, "trainer.num_nodes=2"])
    with pytest.raises(ConfigError, match=r"set trainer\.num_nodes=1"):
        SlurmLauncher(study.options, study.runs).prepare()


@pytest.mark.slow
def test_cells_run_as_jobs_and_what_fails_is_told(tmp_path, capfd):
    study = expand([*TINY, f"output={tmp_path}", "trainer.learning_rate=1e-3,1e3"])
    launcher = SlurmLauncher(study.options, study.runs)
    launcher.executor = submitit.LocalExecutor(tmp_path / "jobs")
    runner = Runner(study.runs, launcher, Lines(Console()))
    assert runner.run() == 1
    assert [finished(cell) for cell in study.cells] == [True, False]
    out = capfd.readouterr().out
    assert "finished  trainer.learning_rate=0.001" in out
    assert "failed    trainer.learning_rate=1000.0  exit status 1" in out and "at step" in out


COMMANDS = {
    "sbatch": """cp "$1" $FOLDER/script
$FOLDER/job >/dev/null 2>&1 &
echo Submitted batch job 77""",
    "scontrol": """(while [ -e $FOLDER/running ]; do sleep 0.1; done
SLURM_RESTART_COUNT=1 $FOLDER/job) >/dev/null 2>&1 &""",
    "srun": """while [ $# -gt 0 ]; do
  case $1 in --output|--error) shift 2;; --*) shift;; *) break;; esac
done
echo $$ > $FOLDER/task
exec env SLURM_PROCID=0 SLURM_STEP_ID=0 "$@" """,
    "sacct": "printf 'JobID|State|NodeList\\n77|RUNNING|n1\\n'",
    "job": """touch $FOLDER/running
SLURM_JOB_ID=77 SLURM_NTASKS=1 bash $FOLDER/script
rm $FOLDER/running""",
}
"""The commands of a cluster of one node that runs a job at once."""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder with the commands of a cluster, first on the path, which record their calls."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, body in COMMANDS.items():
        path = folder / name
        path.write_text(
            f'#!/bin/bash\nFOLDER={folder}\necho {name} "$@" >> {folder}/calls\n{body}\n'
        )
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("signals", [["SIGUSR2"], ["SIGTERM", "SIGUSR2"]])
def test_warned_job_is_queued_again_once_and_goes_on(tmp_path, cluster, signals):
    arguments = [*TINY, f"output={tmp_path / 'out'}", "launcher=slurm", "trainer.max_steps=2500"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "unimem.cli.sweep", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (found := [*(tmp_path / "out" / "cells").glob("*/metrics.jsonl")]):
            assert time.monotonic() < deadline and sweep.poll() is None
            time.sleep(0.05)
        run = found[0].parent
        # Slurm warns every process of the step.
        cell = int((run / ".lock").read_text().split()[1])
        task = int((cluster / "task").read_text())
        alive = [cell, task]
        for name in signals:
            for process in alive:
                os.kill(process, signal.Signals[name])
            if name == "SIGTERM":
                while Path(f"/proc/{cell}").exists() and time.monotonic() < deadline:
                    time.sleep(0.1)
                alive = [task]
                time.sleep(2)
                assert sweep.poll() is None
        out, _ = sweep.communicate(timeout=300)
    finally:
        sweep.kill()
    assert sweep.returncode == 0, out
    calls = (cluster / "calls").read_text().splitlines()
    assert [line for line in calls if line.startswith("scontrol")] == ["scontrol requeue 77"]
    assert [line.split()[0] for line in calls].count("sbatch") == 1
    assert not [*tmp_path.rglob("hpc_ckpt*")]
    assert read_result(run)["slurm_job"] == {"id": "77", "restarts": 1}
    assert "resumes            step-" in run.with_name(f"{run.name}.log").read_text()
