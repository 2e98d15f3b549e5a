"""Launchers are found by name, with the settings that each declares."""

import pytest
from studies.conftest import TINY

from unimem.config import ConfigError
from unimem.paths import CONFIG_DIR
from unimem.studies.cells import SweepOptions, parse, read_options
from unimem.studies.run.launch import make_launcher
from unimem.studies.study import expand


def options(*lines: str) -> SweepOptions:
    return read_options(SweepOptions, "sweep", parse(lines))


def test_settings_of_a_launcher_are_read_if_it_is_chosen():
    slurm = options("launcher=slurm", "slurm.mem_gb=7", "+slurm.extra=x").launcher_settings
    assert (slurm["mem_gb"], slurm["timeout_min"], slurm["extra"]) == (7, 240, "x")
    assert options().launcher_settings == {}
    with pytest.raises(ConfigError, match="slurm.mem_gb is no setting of launcher=local; leave"):
        options("slurm.mem_gb=7")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("launcher=slrum", "launcher=slrum is not an option; did you mean slurm. choose from loc"),
        ("slurm.mem_g=7", "slurm.mem_g is not a setting of the options chosen; did you mean slur"),
    ],
)
def test_a_wrong_name_is_answered_with_those_that_there_are(line, message):
    with pytest.raises(ConfigError, match=message):
        options(*(["launcher=slurm"] if "." in line else []), line)


def test_a_launcher_of_ones_own_is_a_file_beside_its_settings(tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "launcher"
    folder.mkdir(parents=True)
    (folder / "queue.yaml").write_text(
        "# @package _global_\nlauncher: queue\nqueue:\n  width: 3\n  name: a\n"
    )
    (folder / "queue.py").write_text(
        "from unimem.studies.run.launch import Launcher\n\n\n"
        "class Queue(Launcher):\n"
        "    @property\n"
        "    def slots(self):\n"
        "        return self.options.launcher_settings['width']\n\n"
        "    def start(self, cell, slot):\n"
        "        return None\n"
    )
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path / "mine"))
    study = expand([*TINY, "launcher=queue", "queue.width=5", "seed=0,1"])
    assert study.options.launcher_settings == {"width": 5, "name": "a"}
    launcher = make_launcher(study.options, study.runs)
    assert type(launcher).__name__ == "Queue"
    assert launcher.slots == 5 and launcher.start(study.cells[0], 0) is None
    with pytest.raises(ConfigError, match="choose from local, queue, slurm"):
        expand([*TINY, "launcher=nope"])
