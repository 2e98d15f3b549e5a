"""Real processes, really killed: what they leave is continued bit for bit."""

import os
import random
import re
import signal
import subprocess
import time

import pytest
from training.conftest import Runs, metrics, same_weights

from unimem.runs.records import read_result

pytestmark = pytest.mark.slow

LONG = (
    "name=a",
    "trainer.max_steps=120",
    "trainer.checkpoint_every=5",
    "trainer.keep_checkpoints=2",
)


def wait_for_step(run, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.001)
    raise AssertionError(f"step {step} was not reached: {process.communicate()}")


def test_killed_three_times_and_continued_equals_uninterrupted(runs, start, tmp_path):
    whole = Runs(tmp_path / "whole").start(*LONG)
    run = runs.output / "runs" / "a"
    moments = random.Random(1)
    for step, resume in ((13, ()), (48, ("resume=true",)), (77, ("resume=true",))):
        process = start(*LONG, *resume)
        wait_for_step(run, step, process)
        time.sleep(moments.uniform(0, 0.02))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (run / "result.json").exists()
    process = start(*LONG, "resume=true")
    out, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    assert "resumes" in out and "exact resume: yes" in out
    assert metrics(run) == metrics(whole) and len(metrics(run)) == 120
    assert same_weights(run, whole, step=120)
    assert read_result(run)["evaluation"]["scores"]["own"]["nll"] == pytest.approx(
        read_result(whole)["evaluation"]["scores"]["own"]["nll"], abs=0
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_saves_and_tells_in_the_exit_code(runs, start, tmp_path, number, code):
    long = (*LONG, "trainer.checkpoint_every=1000")
    whole = Runs(tmp_path / "whole").start(*long)
    run = runs.output / "runs" / "a"
    process = start(*long)
    wait_for_step(run, 20, process)
    process.send_signal(number)
    out, log = process.communicate(timeout=20)
    assert process.returncode == code, log
    assert "resume=true name=a continues the run" in out and "Traceback" not in log
    assert start(*long, "resume=true").wait(timeout=60) == 0
    assert metrics(run) == metrics(whole)
    assert same_weights(run, whole, step=120)


def test_two_processes_cannot_continue_the_same_run(runs, start):
    long = (*LONG, "trainer.max_steps=2000")
    first = start(*long)
    wait_for_step(runs.output / "runs" / "a", 5, first)
    second = start(*long, "resume=true")
    _, log = second.communicate(timeout=60)
    assert second.returncode == 1
    assert "is being written by another process" in log and "Traceback" not in log
    assert first.poll() is None


def test_what_goes_wrong_is_told_without_a_traceback(start, runs):
    process = start("name=a", "trainer.learning_rate=1e3", "trainer.warmup_steps=0")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in log
    assert re.search(r"is (nan|inf) at step \d, documents \[", log)
    assert not (runs.output / "runs" / "a" / "result.json").exists()


DDP = ("name=a", "trainer.strategy=ddp", "trainer.devices=2", "trainer.batch_size=1")


def test_two_processes_of_ddp_train_and_resume_bit_for_bit(runs, start, tmp_path):
    gated = ("memory.fusion=gated",)
    process = start(*DDP, *gated)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    whole = runs.output / "runs" / "a"

    # The same rows as in one process: the same tokens at every step, the same loss at the first.
    alone = metrics(Runs(tmp_path / "alone").start("name=a", *gated))
    both = metrics(whole)
    assert [line["tokens_seen"] for line in both] == [line["tokens_seen"] for line in alone]
    assert both[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-6)
    assert both[7]["loss"] == pytest.approx(alone[7]["loss"], rel=1e-3)

    runs.output = tmp_path / "copy"
    runs.copy_at(whole, 3)
    process = start(*DDP, *gated, "resume=true")
    _, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    continued = runs.output / "runs" / "a"
    assert metrics(continued) == both
    assert same_weights(continued, whole)


def test_signal_to_one_process_of_ddp_stops_both(runs, start):
    process = start(*DDP, "trainer.max_steps=3000", "trainer.checkpoint_every=10000")
    run = runs.output / "runs" / "a"
    wait_for_step(run, 5, process)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 143, log
    assert len(list((run / "checkpoints").glob("*.ckpt"))) == 1


def test_killed_process_of_ddp_ends_the_run_in_a_line_and_it_goes_on(runs, start):
    process = start(*DDP, "trainer.max_steps=3000", "trainer.checkpoint_every=5")
    run = runs.output / "runs" / "a"
    wait_for_step(run, 12, process)
    children = f"/proc/{process.pid}/task/{process.pid}/children"
    with open(children) as file:
        (other,) = file.read().split()
    os.kill(int(other), signal.SIGKILL)
    _, log = process.communicate(timeout=60)
    assert process.returncode in (1, -signal.SIGKILL), log
    assert "another of the 2 processes of this run ended" in log and "Traceback" not in log
    again = start(*DDP, "trainer.max_steps=3000", "trainer.checkpoint_every=5", "resume=auto")
    wait_for_step(run, 200, again)
