import pytest
from rich.console import Console
from studies.conftest import TINY

from unimem.config import ConfigError
from unimem.studies.disk import finished
from unimem.studies.display import Lines
from unimem.studies.runner import Runner
from unimem.studies.slurm import SlurmLauncher, slurm_executor
from unimem.studies.study import expand

submitit = pytest.importorskip("submitit")


def test_without_a_cluster_it_says_so(tmp_path):
    study = expand([*TINY, f"output={tmp_path}", "launcher=slurm"])
    with pytest.raises(ConfigError, match="launcher=slurm: "):
        slurm_executor(study.options)


def test_one_node_for_a_cell():
    study = expand([*TINY, "trainer.num_nodes=2"])
    with pytest.raises(ConfigError, match=r"set trainer\.num_nodes=1"):
        SlurmLauncher(study.options, study.runs, None)


@pytest.mark.slow
def test_cells_run_as_jobs_and_what_fails_is_told(tmp_path, capfd):
    study = expand([*TINY, f"output={tmp_path}", "trainer.learning_rate=1e-3,1e3"])
    launcher = SlurmLauncher(study.options, study.runs, submitit.LocalExecutor(tmp_path / "jobs"))
    runner = Runner(study.runs, launcher, Lines(Console()))
    assert runner.run() == 1
    assert [finished(cell) for cell in study.cells] == [True, False]
    out = capfd.readouterr().out
    assert "finished  trainer.learning_rate=0.001" in out
    assert "failed    trainer.learning_rate=1000.0  exit status 1" in out and "at step" in out
