"""A disk that is full or read-only costs no finished work: with room again, the run goes on."""

import resource
import shutil
from pathlib import Path

import pytest
from faults.disks import PAGE, mounts, read_only, small_disk
from faults.driver import Commands, Started, wait_for_step
from faults.harm import everything
from training.conftest import Runs, metrics, same_weights

from unimem.config import ConfigError
from unimem.runs.records import read_metrics, read_result
from unimem.training.checkpoint import newest_valid

STOPPED = 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happened to."""
    return Runs(tmp_path_factory.mktemp("whole")).start("name=a")


def is_the_whole(run: Path, whole: Path) -> bool:
    one, other = (read_result(folder)["evaluation"]["scores"]["own"] for folder in (run, whole))
    assert one["nll"] == other["nll"] and one["interval"] == other["interval"]
    left = [path.name for path in run.rglob(".*") if path.name != ".lock"]
    assert not left, "what was half written is still there"
    return metrics(run) == metrics(whole) and same_weights(run, whole)


def finish(runs: Runs) -> Path:
    """Continue the run a, or start it if nothing of it is left."""
    begun = (runs.output / "runs" / "a").exists()
    return runs.start("name=a", *(["resume=true"] if begun else []))


@mounts
@pytest.mark.fault("D1", "the disk is full while a checkpoint is written", "earlier ones stay")
def test_a_disk_that_is_full_at_a_checkpoint_costs_that_checkpoint_alone(tmp_path, whole, injected):
    size = (whole / "checkpoints" / "step-00000004.ckpt").stat().st_size
    for share in (0, 0.1, 0.4, 0.7, 0.9, 1.2, 1.7, 2.5, 3.2):
        with small_disk(tmp_path / f"{share}") as disk:
            runs = Runs(disk.folder / "out")
            runs.copy_at(whole, STOPPED)
            run = runs.output / "runs" / "a"
            before = everything(run / "checkpoints")
            disk.fill(free=int(share * size))
            with pytest.raises(OSError) as told:
                runs.start("name=a", "resume=true")
            injected()
            assert str(run) in str(told.value), "the message does not say which file"
            assert before.items() <= everything(run / "checkpoints").items()
            assert newest_valid(run / "checkpoints") is not None
            disk.make_room()
            assert is_the_whole(finish(runs), whole)
            injected.held()


@mounts
@pytest.mark.fault("D2", "the disk is full when model and result are saved", "said, and done later")
def test_a_disk_that_is_full_at_the_end_costs_no_training(tmp_path, whole, injected):
    for pages in range(1, 100, 2):
        with small_disk(tmp_path / f"{pages}") as disk:
            runs = Runs(disk.folder / "out")
            runs.copy_at(whole, 8)
            run = runs.output / "runs" / "a"
            before = everything(run / "checkpoints")
            disk.fill(free=pages * PAGE)
            try:
                runs.start("name=a", "resume=true")
            except OSError as error:
                assert str(run) in str(error), "the message does not say which file"
            else:
                assert injected.count > 3
                return
            injected()
            assert not (run / "result.json").exists()
            assert everything(run / "checkpoints") == before
            disk.make_room()
            assert is_the_whole(finish(runs), whole)
            injected.held()


LONG = ("name=a", "trainer.max_steps=150", "trainer.checkpoint_every=40")


def started(commands: Commands, runs: Runs, *more: str, step: int) -> Started:
    """Start a process, and wait until it has taken so many steps."""
    process = commands.fork(*runs.overrides(*LONG, *more))
    wait_for_step(runs.output / "runs" / "a", step, process)
    return process


def ends_in_a_sentence(process: Started, *words: str) -> None:
    assert process.wait() == 1, process.said
    last = process.said.strip().splitlines()[-1]
    assert "Traceback" not in process.said and all(word in last for word in words), last


@mounts
@pytest.mark.fault("D2", "the disk is full while metrics are appended", "said; no line is lost")
def test_a_disk_that_is_full_at_a_line_of_metrics(tmp_path, runs, commands, injected):
    whole = Runs(tmp_path / "whole").start(*LONG)
    with small_disk(tmp_path / "disk") as disk:
        runs.output = disk.folder / "out"
        run = runs.output / "runs" / "a"
        process = started(commands, runs, "trainer.checkpoint_every=1000", step=30)
        disk.fill()
        ends_in_a_sentence(process, f"{run} cannot be written: the disk is full", "resume=true")
        injected()
        assert len(read_metrics(run)) < 150
        disk.make_room()
        runs.start(*LONG, "resume=true")
        assert metrics(run) == metrics(whole) and same_weights(run, whole, 150)
        injected.held()


@pytest.mark.fault("D3", "the run's folder vanishes", "named in a line, exit code 1")
def test_a_folder_that_vanishes_is_named(runs, commands, injected):
    run = runs.output / "runs" / "a"
    process = started(commands, runs, "trainer.max_steps=100000", step=20)
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(run, ignore_errors=True)  # of what was written meanwhile
    injected()
    ends_in_a_sentence(process, f"{run}", "is gone")
    injected.held()


@mounts
@pytest.mark.fault("D3", "the run's folder becomes read-only", "named, exit code 1; goes on later")
def test_a_folder_that_becomes_read_only_is_named(tmp_path, runs, commands, injected):
    whole = Runs(tmp_path / "whole").start(*LONG)
    run = runs.output / "runs" / "a"
    process = started(commands, runs, step=50)
    with read_only(run):
        injected()
        ends_in_a_sentence(process, f"{run}/", "cannot be written: Read-only file system")
    runs.start(*LONG, "resume=true")
    assert metrics(run) == metrics(whole) and same_weights(run, whole, 150)
    injected.held()


@mounts
@pytest.mark.fault("D3", "the output folder is read-only", "refused before anything else")
def test_an_output_that_is_read_only_is_refused(runs, injected):
    runs.output.mkdir()
    with read_only(runs.output):
        injected()
        with pytest.raises(ConfigError, match=f"output={runs.output}: .* cannot be made"):
            runs.start("name=a")
    assert list(runs.output.iterdir()) == []
    injected.held()


@pytest.mark.fault("D4", "files may not exceed a size", "said; with a higher limit the run goes on")
def test_a_limit_of_file_sizes_costs_that_checkpoint_alone(runs, whole, injected):
    runs.copy_at(whole, STOPPED)
    run = runs.output / "runs" / "a"
    before = everything(run / "checkpoints")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (2 * PAGE, 8 * PAGE):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(OSError, match="step-00000008.ckpt cannot be written: a file may"):
                runs.start("name=a", "resume=true")
            injected()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert everything(run / "checkpoints") == before
    assert is_the_whole(finish(runs), whole)
    injected.held(2)


@mounts
@pytest.mark.fault("D4", "there are no inodes left", "said; with more of them the run goes on")
def test_a_disk_without_inodes_costs_no_checkpoint(tmp_path, whole, injected):
    files = sum(1 for _ in whole.rglob("*"))
    for inodes in range(6, files + 4, 4):
        with small_disk(tmp_path / f"{inodes}", f"size=8m,nr_inodes={inodes}") as disk:
            runs = Runs(disk.folder / "out")
            try:
                runs.start("name=a")
            except (OSError, ValueError) as error:
                assert str(disk.folder) in str(error), "the message does not say which file"
                injected()
                failed = True
            else:
                failed = False
            disk.remount("nr_inodes=1000")
            assert is_the_whole(finish(runs), whole)
            if failed:
                injected.held()
    assert injected.count > 3
