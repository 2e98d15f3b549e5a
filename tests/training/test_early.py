"""Mistakes that need no torch are answered without it."""

import subprocess
import sys

import pytest

from unimem.config import ConfigError, compose
from unimem.training import early
from unimem.training.early import require_startable


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "file").write_text("")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["name=taken"], "name=taken is taken"),
        (["resume=true"], "resume=true needs name="),
        (["study=cells", "name=x"], "study=cells: .* name=x is not of these settings: choose"),
        (["study=cells"], "study=cells: .* no such name: choose another study"),
        (["resume=true", "name=gone"], "outputs/runs/gone does not exist"),
        (["output=file"], "output=file: the folder file/runs cannot be made .Not a directory"),
        (["output=/dev/full"], "output=/dev/full: .* name a folder that can be written"),
        (["output=/proc/nope"], "output=/proc/nope: .*No such file"),
        (["model=hf", "model.name=outputs/runs/gone"], "model.name=outputs/runs/gone does not"),
        (["model=hf", "model.name=./gone"], "name a folder .* or a hub id"),
        (["data=text", "data.path=nowhere"], "data.path=nowhere does not exist"),
        (["data=text", "data.path=[file,nowhere]"], "data.path=nowhere does not exist"),
    ],
)
def test_what_cannot_start_is_told(overrides, message):
    with pytest.raises(ConfigError, match=message):
        require_startable(compose("data=markov", *overrides))


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(early, "GPU_FILES", ("no-such-device",))
    if sys.platform.startswith("linux"):
        with pytest.raises(ConfigError, match="trainer.accelerator=gpu but this machine has no"):
            require_startable(compose("data=markov", "trainer.accelerator=gpu"))
    require_startable(compose("data=markov", "trainer.accelerator=auto"))


def test_tasks_that_would_each_be_the_whole_run_are_told(monkeypatch):
    for name in ("SLURM_PROCID", "SLURM_STEP_ID"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(ConfigError, match="srun started 2 tasks, but trainer.devices=1"):
        require_startable(compose("data=markov", "trainer.devices=1"))
    require_startable(compose("data=markov", "trainer.devices=2"))


def test_later_processes_join_what_the_first_has_made(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    require_startable(compose("data=markov", "name=taken"))


def test_it_costs_no_torch(tmp_path):
    code = (
        "import sys; sys.argv = ['unimem-train', 'name=taken', 'data=markov'];"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules));"
        "from unimem.cli.train import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "is taken" in done.stderr and done.stdout == "False\n"
