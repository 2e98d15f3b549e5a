"""Processes that get into each other's way: on one run, on one second, on one name."""

import json
import os
import re
import signal

import pytest
from faults.driver import STEPS, compare
from faults.inject import Fault
from training.conftest import Runs, metrics

AT_ONCE = 5


@pytest.mark.fault(
    "P1",
    "five processes start one run at one instant, and five continue a killed one",
    "exactly one trains; the others end with a line that names the run; to the bit",
)
def test_many_processes_on_one_run(disturbed, undisturbed, commands, injected):
    run = disturbed()
    kill = Fault("write", "*/metrics.jsonl", "after", 13)
    at_once = [commands.fork(*run.arguments, faults=[kill]) for _ in range(AT_ONCE)]
    codes = [process.wait() for process in at_once]
    assert sorted(codes) == [-signal.SIGKILL, *[1] * (AT_ONCE - 1)], codes
    assert sum(process.suffered for process in at_once) == 1
    for process, code in zip(at_once, codes, strict=True):
        assert code != 1 or f"name=a is taken: {run.run} exists" in process.said
    injected(AT_ONCE)

    at_once = [run.fork() for _ in range(AT_ONCE)]
    codes = [process.wait() for process in at_once]
    said = [process.said for process in at_once]
    assert sum("resumes " in each and "results " in each for each in said) == 1
    for code, each in zip(codes, said, strict=True):
        assert "Traceback" not in each
        assert code == 0 or (code == 1 and f"{run.run} is being written by another" in each), each
    injected(AT_ONCE)
    assert compare(run.run, undisturbed(run.arguments[:-1])).steps == STEPS
    injected.held(2 * AT_ONCE)


LOCKS = ["", "process 4194305 on this-host\n", "process 1 on another-host\n", "\0\0\0"]


@pytest.mark.fault(
    "P3",
    "the lock of a process that is dead: empty, of a number that is free, of one in use, garbage",
    "it holds nobody up; to the bit",
)
def test_a_lock_that_was_left_behind(runs, tmp_path, injected):
    whole = runs.start("name=a")
    for number, lock in enumerate(LOCKS):
        copy = Runs(tmp_path / f"copy-{number}")
        copy.copy_at(whole, 5)
        (copy.output / "runs" / "a" / ".lock").write_text(lock)
        injected()
        assert compare(copy.start("name=a", "resume=true"), whole).steps == 8
        injected.held()


@pytest.mark.fault(
    "N4",
    "the clock leaps back and forth by hours, and checkpoints have the wrong times",
    "steps decide, not times: to the bit",
)
def test_the_clock_leaps(runs, tmp_path, injected, monkeypatch):
    import time

    whole = runs.start("name=a")
    now, leaps = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now() + (-1) ** next(leaps) * 7200)
    copy = Runs(tmp_path / "copy")
    copy.copy_at(whole, 5)
    found = sorted((copy.output / "runs" / "a" / "checkpoints").iterdir())
    for age, path in enumerate(found):
        os.utime(path, (now() - 3600 * age, now() - 3600 * age))
    assert compare(copy.start("name=a", "resume=true"), whole).steps == 8
    assert next(leaps) > 0
    injected(len(found))
    injected.held(len(found))


@pytest.mark.fault(
    "N4",
    "four runs without a name start in one second",
    "each has a folder of its own, and all end in the same bits",
)
def test_runs_of_one_second(disturbed, commands, injected):
    run = disturbed()
    unnamed = [line for line in run.arguments if line != "name=a"]
    at_once = [commands.fork(*unnamed) for _ in range(4)]
    assert [process.wait() for process in at_once] == [0] * 4
    injected(4)
    folders = sorted(run.run.parent.iterdir())
    assert len(folders) == 4
    assert [re.sub(r".*-s0", "", folder.name) for folder in folders] == ["", "-2", "-3", "-4"]
    for folder in folders:
        assert len(metrics(folder)) == STEPS and metrics(folder) == metrics(folders[0])
        assert json.loads((folder / "result.json").read_text())["name"] == folder.name
    injected.held(4)


@pytest.mark.fault(
    "N1",
    "the loss becomes infinite or NaN, in runs of three seeds",
    "it stops before the update, names step and documents; checkpoints before it stay whole",
)
def test_loss_is_not_finite(disturbed, injected):
    for seed in range(3):
        run = disturbed(
            f"seed={seed}",
            "trainer.learning_rate=1e3",
            "trainer.warmup_steps=0",
            "trainer.checkpoint_every=1",
        )
        process = run.fork()
        assert process.wait() == 1 and "Traceback" not in process.said
        found = re.search(r"is (nan|inf) at step (\d+), documents \[", process.said)
        assert found, process.said
        step = int(found[2])
        injected()
        assert not (run.run / "result.json").exists()
        # the step that failed is not recorded, and has not changed the weights
        assert [line["step"] for line in metrics(run.run)] == [*range(1, step)]
        names = sorted(path.name for path in run.run.glob("checkpoints/*.ckpt"))
        assert not names or names[-1] == f"step-{step - 1:08d}.ckpt"
        again = run.fork()
        assert again.wait() == 1
        assert f"at step {step}, documents [" in again.said
        injected.held()
        for path in sorted(run.run.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        run.run.rmdir()
