"""Two runs never share a folder, and a folder is continued as it was begun."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import yaml
from training.conftest import Runs

from unimem.config import ConfigError, compose
from unimem.overrides import literal
from unimem.runs.continued import FinishedRunError
from unimem.runs.folder import open_run, readable_name, recorded_config


def settings(tmp_path, *more):
    return compose(*Runs(tmp_path).overrides(*more))


@pytest.fixture
def opened(tmp_path):
    def opened(*more):
        with open_run(settings(tmp_path, *more), rank=0) as run:
            run.begun = True
            return run.path

    return opened


def test_name_is_made_of_settings_and_numbered(opened, tmp_path):
    base = "transformer_xl-2x16-markov-s0"
    paths = [opened() for _ in range(3)]
    assert paths == [tmp_path / "runs" / name for name in (base, f"{base}-2", f"{base}-3")]
    layer = compose("injection_layer=1", "seed=3")
    assert readable_name(layer) == "custom-l1-22x128-stdlib-s3"
    started = compose("model=hf", "model.name=/a/some-run/model", "injection_layer=1")
    assert readable_name(started) == "custom-l1-some-run-stdlib-s0"
    assert readable_name(started, layer.model) == "custom-l1-22x128-stdlib-s0"


@pytest.mark.parametrize(
    "name",
    ["../../up", "/abs", "~", "..", ".hidden", "a\nb", "größe", "a" * 300, "-rf", "a/../b"],
)
def test_a_folder_made_of_settings_lies_where_runs_lie(name):
    for lines in ([f"method.name={literal(name)}"], ["model=hf", f"model.name={literal(name)}"]):
        try:
            found = readable_name(compose(*lines))
        except ConfigError as error:
            assert name == "a" * 300 and "name" in str(error)
            continue
        assert re.fullmatch(r"[A-Za-z0-9_+][A-Za-z0-9._+-]{0,159}", found)


def test_many_at_once_get_folders_of_their_own(tmp_path):
    config = settings(tmp_path)

    def make(_):
        with open_run(config, rank=0) as run:
            run.begun = True
            return run.path

    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(make, range(16)))
    assert len(set(paths)) == 16


def test_record_can_be_read_back(opened, tmp_path):
    given = ("name=a", "logger.tags=[a,'1','true','x: y']")
    record = recorded_config(opened(*given))
    assert record["logger"]["tags"] == ["a", "1", "true", "x: y"]
    assert record == settings(tmp_path, *given).record()
    assert yaml.safe_load((tmp_path / "runs" / "a" / "config.yaml").read_text()) == record


def test_taken_name_is_an_error_that_says_how_to_go_on(opened):
    opened("name=a")
    with pytest.raises(ConfigError, match="name=a is taken: .*resume=true, or choose another"):
        opened("name=a")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("resume=true",), "resume=true needs name="),
        (("resume=true", "name=b"), "resume=true name=b: .*runs/b does not exist"),
    ],
)
def test_nothing_to_resume_is_an_error(opened, more, message):
    with pytest.raises(ConfigError, match=message):
        opened(*more)


def test_folder_that_is_no_run_is_not_resumed(opened, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="runs/mine is not a run's folder: it holds no config"):
        opened("resume=true", "name=mine")


@pytest.mark.parametrize("resume", ["resume=true", "resume=auto"])
@pytest.mark.parametrize("left", [(), (".lock",)])
def test_run_that_was_killed_before_it_recorded_its_settings_begins(opened, tmp_path, left, resume):
    (tmp_path / "runs" / "a").mkdir(parents=True)
    for name in left:
        (tmp_path / "runs" / "a" / name).touch()
    path = opened(resume, "name=a")
    assert recorded_config(path)["name"] == "a"


def test_auto_makes_the_folder_and_then_opens_it(opened, tmp_path):
    first = opened("resume=auto", "name=a")
    record = (first / "config.yaml").read_bytes()
    assert opened("resume=auto", "name=a") == opened("resume=true", "name=a") == first
    assert (first / "config.yaml").read_bytes() == record
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def test_auto_without_a_name_opens_the_one_that_its_settings_make(opened, tmp_path):
    paths = {opened("resume=auto") for _ in range(3)}
    assert paths == {tmp_path / "runs" / "transformer_xl-2x16-markov-s0"}
    with pytest.raises(ConfigError, match="resume=auto: these settings .* another name, name="):
        opened("resume=auto", "trainer.clip=2")


@pytest.mark.parametrize("resume", ["resume=true", "resume=auto"])
def test_nothing_is_written_into_what_is_not_a_runs_folder(opened, tmp_path, resume):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(tmp_path / "thesis")
    with pytest.raises(ConfigError, match="runs/mine is not a run's folder: it holds no config"):
        opened(resume, "name=mine")
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    (tmp_path / "runs" / "file").touch()
    with pytest.raises(ConfigError, match=f"{resume}: .*runs/file is not a run's folder"):
        opened(resume, "name=file")


def test_run_that_was_moved_goes_on_through_a_link(opened, tmp_path):
    path = opened("name=a")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert opened("resume=auto", "name=a") == path
    assert recorded_config(tmp_path / "elsewhere")["name"] == "a"


def test_many_at_once_start_one_run(tmp_path):
    config = settings(tmp_path, "name=a", "resume=auto")
    together = Barrier(8)

    def start(_) -> str:
        together.wait()
        try:
            with open_run(config, rank=0):
                time.sleep(0.2)
                raise RuntimeError  # a run that comes to nothing takes its folder away
        except (RuntimeError, ConfigError) as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(start, range(8)))
    assert told.count("") == 1
    assert all("is being written by another process" in line for line in told if line)
    assert not (tmp_path / "runs" / "a").exists()


def test_finished_run_is_told_apart(opened):
    path = opened("name=a")
    (path / "result.json").write_text('{"config": {}}')
    with pytest.raises(ConfigError, match="name=a is taken: .* is a finished run; choose another"):
        opened("name=a")
    with pytest.raises(FinishedRunError, match="runs/a is finished, .*other settings\n  seed: 5"):
        opened("name=a", "resume=auto", "seed=5")


def test_renamed_folder_goes_on_under_its_new_name(opened, tmp_path):
    path = opened("name=a")
    path.rename(tmp_path / "runs" / "b")
    assert opened("resume=true", "name=b").name == "b"


def test_resume_refuses_changed_settings_and_shows_them(opened):
    opened("name=a")
    with pytest.raises(ConfigError) as error:
        opened("name=a", "resume=true", "seed=5", "trainer.clip=2", "trainer.log_every=7")
    text = str(error.value)
    assert "  seed: 5, was 0" in text and "  trainer.clip: 2.0, was 1.0" in text
    assert "  trainer.log_every" not in text and "only these may differ: output, study" in text


def test_resume_allows_what_does_not_change_the_result(opened):
    path = opened("name=a")
    changed = ("trainer.log_every=7", "logger.mode=offline", "evaluation.documents=3")
    assert opened("name=a", "resume=true", *changed) == path


def test_second_process_is_told_who_writes(tmp_path):
    config = settings(tmp_path, "name=a")
    other = f"""
from unimem.config import compose
from unimem.runs.continued import FinishedRunError
from unimem.runs.folder import open_run
overrides = {Runs(tmp_path).overrides("name=a", "resume=true")!r}
with open_run(compose(*overrides), rank=0):
    pass
"""
    with open_run(config, rank=0) as run:
        run.begun = True
        done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        assert done.returncode == 1
        assert f"{run.path} is being written by another process (process " in done.stderr
    assert subprocess.run([sys.executable, "-c", other]).returncode == 0


def test_folder_goes_if_training_did_not_begin(tmp_path):
    config = settings(tmp_path, "name=a")
    with pytest.raises(RuntimeError), open_run(config, rank=0) as run:
        assert run.path.is_dir()
        raise RuntimeError
    assert not run.path.exists()


def test_other_ranks_join_the_folder_of_the_first(tmp_path):
    config = settings(tmp_path)
    with open_run(config, rank=0) as first, open_run(config, rank=1) as second:
        assert second.path == first.path.resolve()
    with pytest.raises(ConfigError, match="need name="), open_run(config, rank=1):
        pass
