"""Processes that are killed: the run goes on with the same command, and ends in the same bits."""

import random
import shutil
import signal

import pytest
from faults.driver import EVERY, STEPS, compare, wait_for_step
from faults.inject import Fault

KILLED_RUNS = 3
LONG = ("trainer.max_steps=90",)


@pytest.mark.fault(
    "K1",
    "SIGKILL at random moments of training, three in every run",
    "no step beyond the last checkpoint is lost; curve, weights and documents to the bit",
)
@pytest.mark.parametrize("seed", range(KILLED_RUNS))
def test_killed_at_random_moments(disturbed, undisturbed, injected, seed):
    run = disturbed(*LONG)
    moments = random.Random(seed)
    for step in sorted(moments.sample(range(3, 80), 3)):
        process = run.start() if seed == 0 and injected.count == 0 else run.fork()
        wait_for_step(run.run, step, process)
        process.send(signal.SIGKILL, to_all=True)
        assert process.wait() == -signal.SIGKILL
        assert not (run.run / "result.json").exists()
        injected()
        newest = max(run.run.glob("checkpoints/step-*.ckpt.sha256"), default=None)
        assert step <= EVERY or newest is not None
    compared = compare(run.finish(), undisturbed(run.arguments[:-1]))
    assert compared.steps == 90
    injected.held(3)


TEMPORARY = "*/.step-00000010.ckpt.tmp-*"
CHECKPOINT, CHECKSUM = "*/step-00000010.ckpt", "*/step-00000010.ckpt.sha256"
REMOVED = "*/step-00000005.ckpt"
WRITING = [
    Fault("write", TEMPORARY, "before"),
    Fault("write", TEMPORARY, "half", 20),
    Fault("os.fsync", TEMPORARY, "before"),
    Fault("os.fsync", TEMPORARY, "after"),
    Fault("write", "*/.step-00000010.ckpt.sha256.tmp-*", "half"),
    Fault("os.replace", CHECKSUM, "before"),
    Fault("os.replace", CHECKSUM, "after"),
    Fault("os.replace", CHECKPOINT, "before"),
    Fault("os.replace", CHECKPOINT, "after"),
    Fault("os.unlink", f"{REMOVED}.sha256", "before"),
    Fault("os.unlink", f"{REMOVED}.sha256", "after"),
    Fault("os.unlink", REMOVED, "after"),
]


@pytest.mark.fault(
    "K2",
    "SIGKILL at twelve places in the writing of a checkpoint and the removal of the one before",
    "the newest whole one is used; nothing is left behind; to the bit",
)
@pytest.mark.parametrize("some", [WRITING[0::3], WRITING[1::3], WRITING[2::3]], ids="abc")
def test_killed_while_a_checkpoint_is_written(disturbed, undisturbed, injected, some):
    # of three checkpoints, that after step 5 is removed when the one after step 15 is written
    for fault in some:
        run = disturbed()
        run.suffer(fault, TMPDIR="/dev/shm")
        injected()
        assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
        injected.held()
        shutil.rmtree(run.run.parent)
