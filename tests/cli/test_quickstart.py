import os
import signal
import subprocess
import sys

import pytest

from unimem.cli import quickstart as module
from unimem.cli.quickstart import Training, main, plan, quickstart, train_all
from unimem.cli.report import write_report
from unimem.config import compose
from unimem.paths import config_root
from unimem.training.run import train

# Lightning 2.6 uses what torch 2.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

TINY = [
    "trainer.max_steps=1",
    "trainer.batch_size=2",
    "evaluation.batch_size=2",
    "data.validation_documents=3",
]
EXPERIMENTS = sorted(f.stem for f in (config_root() / "conf/experiment").iterdir())


@pytest.mark.parametrize("quick", [False, True])
def test_plan_names_experiments_that_exist(quick):
    trainings = plan(quick, seeds=2)
    assert len({training.name for training in trainings}) == len(trainings)
    for training in trainings:
        compose(f"experiment={training.experiment}", *training.overrides)
    assert "quickstart_code" in trainings[0].experiment


def test_the_two_arms_of_known_truth_differ_in_memory_alone():
    memory = compose("experiment=quickstart_markov")
    none = compose("experiment=quickstart_markov_none")
    assert none.memory.label("management") == "none" and none.method.name == "vanilla"
    for part in ("model", "data", "trainer", "evaluation"):
        assert getattr(memory, part) == getattr(none, part)
    assert memory.memory.segment_length == none.memory.segment_length


def train_here(folder, name, experiment, *overrides):
    given = [f"experiment={experiment}", f"name={name}", *TINY, *overrides]
    given += [f"output={folder.parent}", f"study={folder.name}"]
    train(compose(*given))


@pytest.fixture
def sources(tmp_path):
    """Real text for the exhibit of real code, smaller than the standard library."""
    folder = tmp_path / "sources"
    folder.mkdir()
    for i in range(12):
        lines = (f"def f{i}_{j}(x):\n    return x + {i * j}\n" for j in range(90))
        (folder / f"m{i}.py").write_text("\n".join(lines))
    return folder


def code(folder, sources):
    cut = ["data=text", f"data.path={sources}", f"data.cache={sources.parent / 'cache'}"]
    cut += ["data.held_out=0.4", "data.vocab_size=300", "data.min_tokens=1200"]
    train_here(folder, "code", "quickstart_code", *cut, "memory.size=512")


def test_report_of_models_that_learned_nothing_fails(tmp_path, sources):
    folder = tmp_path / "out" / "run-1"
    for seed in range(2):
        train_here(folder, f"markov-{seed}", "quickstart_markov", f"seed={seed}")
        train_here(folder, f"markov-none-{seed}", "quickstart_markov_none", f"seed={seed}")
    code(folder, sources)
    text, passed = write_report(folder.parent, folder, quick=False, seeds=2, seconds=1.5)
    assert not passed and "**FAIL**" in text
    assert "- NO: the model with memory is below the best loss possible without memory" in text
    assert "- yes: no model is below its best possible loss: nothing leaks" in text
    assert "2 seeds" in text and "positions 128 to 511" in text and "positions 512 to" in text
    assert (folder.parent / "report.md").read_text() == text + "\n"
    for figure in ("markov_by_position.png", "code_by_position.png"):
        assert f"({figure})" in text and (folder.parent / figure).is_file()


def test_quick_report_judges_the_smoke_test_alone(tmp_path, sources):
    folder = tmp_path / "out" / "run-1"
    train_here(folder, "urn", "quickstart_urn")
    code(folder, sources)
    text, passed = write_report(folder.parent, folder, quick=True, seeds=1, seconds=1.5)
    assert not passed and text.count("**FAIL**") == 1
    assert "Too short a training to be judged" in text


def test_a_training_that_fails_is_shown(tmp_path, capfd):
    bad = Training(name="bad", experiment="quickstart_urn", overrides=["injection_layer=99"])
    with pytest.raises(subprocess.CalledProcessError) as error:
        train_all([bad], tmp_path)
    assert "the model has 2 layers (0..1)" in error.value.output
    assert "the model has 2 layers (0..1)" in (tmp_path / "bad.log").read_text()


def test_status_says_the_verdict(monkeypatch, capsys):
    for passed, status in ((True, 0), (False, 1)):
        monkeypatch.setattr(module, "quickstart", lambda *_, passed=passed: passed)
        monkeypatch.setattr(sys, "argv", ["quickstart"])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == status
    monkeypatch.setattr(sys, "argv", ["quickstart", "--seeds", "0"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--seeds 0 must be 1 or more" in capsys.readouterr().err


@pytest.mark.slow
def test_trainings_end_with_the_quickstart(tmp_path):
    command = [sys.executable, "-m", "unimem.cli.quickstart", "--quick"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert any("step 1 of" in line for line in process.stdout)
        runs = tmp_path / "outputs/quickstart/run-1"
        children = [int(lock.read_text().split()[1]) for lock in runs.glob("*/.lock")]
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(60) == 143
    assert children
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.slow
def test_quick_passes(tmp_path):
    assert quickstart(tmp_path, quick=True, seeds=1)
    assert (tmp_path / "report.md").is_file()
    assert (tmp_path / "run-1" / "urn.log").is_file()
