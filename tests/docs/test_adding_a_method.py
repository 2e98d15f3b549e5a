"""docs/adding-a-method.md, done word for word in an empty folder."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from unimem.config import compose
from unimem.memory.registry import option_names
from unimem.paths import CONFIG_DIR, config_root

PAGE = (config_root() / "docs" / "adding-a-method.md").read_text()
FILES = re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(COMMANDS,) = (text for language, text in FENCED if not language)
SMALL = [
    "data=markov", "data.length=64", "data.train_documents=4", "data.validation_documents=2",
    "model=tiny", "memory.segment_length=16", "trainer.max_steps=1", "trainer.warmup_steps=0",
    "evaluation.controls=false", "logger=none",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the page's files."""
    for name, text in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_names_its_files_and_commands():
    assert [name.rsplit("/", 1)[-1] for name, _ in FILES] == [
        "logsparse.py", "logsparse.yaml", "logsparse.yaml", "test_logsparse.py",
    ]  # fmt: skip
    assert len(COMMANDS.splitlines()) == 5
    for path in re.findall(r"`((?:src|conf|tests)/[\w./]+\w)`", PAGE):
        assert (config_root() / path).exists(), path


def test_the_option_is_known_and_its_test_passes(folder, monkeypatch):
    monkeypatch.setenv(CONFIG_DIR, str(folder / "my_conf"))
    assert "logsparse" in option_names("reading")
    names = {}
    exec((folder / "test_logsparse.py").read_text(), names)
    names["test_logsparse_is_its_mask"]()
    for line in COMMANDS.splitlines():
        command, *arguments = shlex.split(line)
        if command == "unimem-train":
            memory = compose(*arguments[2:]).memory
            assert any(
                "LogSparse" in type(p).__name__ for p in memory.plan(22).layers[11].reading.parts
            )


def test_a_position_scheme_of_ones_own(folder, monkeypatch):
    """A file in `positions/`; the schemes of the project stay."""
    own = folder / "my_conf" / "positions"
    own.mkdir()
    scheme = (config_root() / "src/unimem/memory/positions/capped.py").read_text()
    (own / "fixed.py").write_text(scheme.replace("class Capped", "class Fixed"))
    monkeypatch.setenv(CONFIG_DIR, str(folder / "my_conf"))
    memory = compose("memory.positions=fixed", "memory.limit=600").memory
    assert memory.plan(22).layers[11].positions.label == "memory.positions=fixed"
    assert memory.plan(22).layers[11].positions.limit == 600
    assert compose("memory.positions=true").memory.positions == "true"


def test_a_wrong_budget_is_refused_by_its_flat_name(folder, monkeypatch):
    monkeypatch.setenv(CONFIG_DIR, str(folder / "my_conf"))
    with pytest.raises(ValueError, match=r"memory\.near.*-1"):
        compose("method=logsparse", "memory.near=-1")


@pytest.mark.slow
def test_every_command_of_the_page_runs(folder):
    binaries = os.path.dirname(sys.executable)
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    for line in COMMANDS.splitlines():
        more = [] if "pytest" in line else [*SMALL]
        if "unimem-train" in line:
            more += ["memory.size=32"] + ["memory.injection.layers=[1]"] * ("method" not in line)
        done = subprocess.run(
            f"{line} {shlex.join(more)}",
            shell=True,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
