"""A checkpoint is whole, or it is not used: kills, full disks, flipped bits."""

import errno
import itertools
import logging
import os
import random
import resource
import signal
import time

import pytest
import torch
from training.conftest import metrics, same_weights

from unimem.runs.records import read_result
from unimem.training.checkpoint import (
    AtomicCheckpointIO,
    checkpoints,
    find_corruption,
    newest_valid,
    quarantine,
    step_of,
)


def save(folder, step: int, size: int = 2000):
    path = folder / f"step-{step:08d}.ckpt"
    value = {"step": step, "weights": torch.full((size,), float(step))}
    AtomicCheckpointIO().save_checkpoint(value, path)
    return path


def test_saves_loads_and_leaves_nothing_else(tmp_path):
    path = save(tmp_path / "checkpoints", 7)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert loaded["step"] == 7 and torch.equal(loaded["weights"], torch.full((2000,), 7.0))
    assert step_of(path) == 7
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, f"{path.name}.sha256"]


def truncate(share):
    return lambda data: data[: int(share * len(data))]


def flip(place):
    def flipped(data):
        i = int(place * (len(data) - 1))
        return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]

    return flipped


def zero_tail(data):
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


@pytest.mark.parametrize(
    "harm", [*map(truncate, (0, 0.01, 0.5, 0.99)), *map(flip, (0, 0.3, 0.7, 1)), zero_tail]
)
def test_damaged_newest_is_named_and_the_one_before_used(tmp_path, harm, caplog):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    newer.write_bytes(harm(newer.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert newest_valid(tmp_path) == older
    assert newer.name in caplog.text and "sha256" in caplog.text
    with pytest.raises(ValueError, match="step-00000002.ckpt is damaged: its sha256 is"):
        AtomicCheckpointIO().load_checkpoint(newer)
    data = newer.read_bytes()
    quarantine(tmp_path, older)
    assert checkpoints(tmp_path) == [older]
    assert newer.with_name(f"{newer.name}.damaged").read_bytes() == data


def test_without_checksum_it_was_never_finished(tmp_path):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    newer.with_name(f"{newer.name}.sha256").unlink()
    assert newest_valid(tmp_path) == older


def test_all_damaged_is_an_error_and_none_is_none(tmp_path):
    assert newest_valid(tmp_path) is None
    for step in (1, 2):
        save(tmp_path, step).write_bytes(b"")
    with pytest.raises(ValueError, match="all 2 checkpoints in .* are damaged; start a new run"):
        newest_valid(tmp_path)


def test_no_code_in_a_checkpoint_is_run(tmp_path):
    class Canary:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": Canary()}, path)
    assert find_corruption(path) is None
    with pytest.raises(ValueError, match="it holds more than tensors and plain values"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=None)
    assert not (tmp_path / "canary").exists()


def test_full_disk_leaves_the_earlier_checkpoint(tmp_path):
    path = save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="step-00000002.ckpt cannot be written: .* intact"):
            save(tmp_path, 2, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert newest_valid(tmp_path) == path
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kill_while_writing_leaves_a_whole_checkpoint(tmp_path):
    """Processes that do nothing but write are killed; the newest checkpoint always loads."""
    save(tmp_path, 0)
    moments = random.Random(0)
    orphans = 0
    for _ in range(12):
        first = step_of(checkpoints(tmp_path)[-1])
        child = os.fork()
        if child == 0:
            for step in range(first + 1, first + 1000):
                save(tmp_path, step, size=500_000)
                AtomicCheckpointIO().remove_checkpoint(checkpoints(tmp_path)[0])
            os._exit(0)
        time.sleep(moments.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        orphans += len(list(tmp_path.glob(".*.tmp-*")))
        newest = newest_valid(tmp_path)
        assert newest is not None
        loaded = AtomicCheckpointIO().load_checkpoint(newest)
        assert torch.equal(loaded["weights"], torch.full_like(loaded["weights"], step_of(newest)))
        quarantine(tmp_path, newest)
        assert not list(tmp_path.glob(".*.tmp-*"))
    assert orphans, "no kill hit a write: the test shows nothing"


@pytest.mark.parametrize("kind", ["folder", "link to nothing"])
def test_what_is_no_file_is_passed_over(tmp_path, kind, caplog):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    newer.unlink()
    newer.mkdir() if kind == "folder" else newer.symlink_to("gone")
    with caplog.at_level(logging.WARNING):
        assert newest_valid(tmp_path) == older
    assert f"{newer.name} is damaged (it cannot be read: " in caplog.text
    quarantine(tmp_path, older)
    assert checkpoints(tmp_path) == [older]


def test_checkpoint_under_the_name_of_another_step_is_refused(tmp_path):
    path = tmp_path / "step-00000003.ckpt"
    AtomicCheckpointIO().save_checkpoint({"global_step": 7}, path)
    with pytest.raises(ValueError, match="holds the state after step 7: the file was renamed"):
        AtomicCheckpointIO().load_checkpoint(path)


@pytest.fixture
def full(monkeypatch):
    """A disk that is full while `torch.save` is called for the given times."""
    calls = itertools.count(1)
    times: set[int] = set()
    whole = torch.save

    def save_or_not(*given):
        if next(calls) in times:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(*given)

    monkeypatch.setattr(torch, "save", save_or_not)
    return times


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_training_goes_on_where_a_checkpoint_cannot_be_saved(runs, full, caplog):
    undisturbed = runs.start("name=a")
    full |= {8 + 3, 8 + 4}
    run = runs.start("name=b")
    saved = [step_of(path) for path in checkpoints(run / "checkpoints")]
    assert saved == [1, 2, 5, 6, 7, 8] and same_weights(run, undisturbed)
    assert caplog.text.count("training goes on, and saves again later") == 2
    assert "step-00000003.ckpt cannot be written: " in caplog.text
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_the_last_checkpoint_must_be_saved_and_the_run_can_be_continued(runs, full):
    full |= {7, 8}
    with pytest.raises(OSError, match="step-00000008.ckpt cannot be written: .* resume=true"):
        runs.start("name=b")
    run = runs.output / "runs" / "b"
    assert newest_valid(run / "checkpoints") == run / "checkpoints" / "step-00000006.ckpt"
    assert not (run / "result.json").exists()
    runs.start("name=b", "resume=true")
    assert [line["step"] for line in metrics(run)] == list(range(1, 9))


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_best_weights_are_among_those_that_could_be_kept(runs, full, caplog):
    validate = ("trainer.validate_every=4", "trainer.keep_best=true", "trainer.checkpoint_every=8")
    full |= {1}
    result = read_result(runs.start("name=b", *validate))
    assert "the best weights stay those that were kept before" in caplog.text
    assert result["weights"] == {"which": "best", "step": 8}
