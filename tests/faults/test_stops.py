"""Signals that ask a process to end: it saves, leaves with 128 + signal, and goes on to the bit."""

import random
import shutil
import signal

import pytest
from faults.driver import STEPS, compare, wait_for_step
from faults.inject import Fault
from training.conftest import metrics

TERM, INT = signal.SIGTERM, signal.SIGINT
LONG = ("trainer.max_steps=90", "trainer.checkpoint_every=1000")
AGAIN = "continues the run"


def newest_checkpoint(run) -> int:
    return max(int(p.name[5:13]) for p in (run / "checkpoints").glob("step-*.ckpt"))


def at_step(step: int, number: int) -> Fault:
    return Fault("write", "*/metrics.jsonl", "after", step, number)


@pytest.mark.fault(
    "S1",
    "SIGTERM at random steps, and in half of the runs once more at once",
    "exit code 143 after the step, which is saved: no step is lost; to the bit",
)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
def test_terminated_at_random_steps(disturbed, undisturbed, injected, twice):
    run = disturbed(*LONG)
    for step in sorted(random.Random(twice).sample(range(3, 80), 3)):
        process = run.fork()
        wait_for_step(run.run, step, process)
        for _ in range(1 + twice):
            process.send(TERM)
        assert process.wait(20) == 143, process.said
        injected()
        assert AGAIN in process.said and "Traceback" not in process.said
        assert newest_checkpoint(run.run) == metrics(run.run)[-1]["step"] >= step
        assert len(list((run.run / "checkpoints").glob("*.ckpt"))) <= 2
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == 90
    injected.held(3)


@pytest.mark.fault(
    "S2",
    "Ctrl-C, to the whole session of a command that a shell started",
    "exit code 130 after the step, which is saved; to the bit",
)
def test_interrupted(disturbed, undisturbed, injected):
    run = disturbed(*LONG)
    process = run.start()
    wait_for_step(run.run, 20, process)
    process.send(INT, to_all=True)
    assert process.wait(20) == 130, process.said
    injected()
    assert AGAIN in process.said and "Traceback" not in process.said
    assert newest_checkpoint(run.run) == metrics(run.run)[-1]["step"]
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == 90
    injected.held()


@pytest.mark.fault(
    "S2",
    "Ctrl-C a second time, while the checkpoint that the first asked for is written",
    "it leaves at once with 130; the checkpoint before it is used; to the bit",
)
def test_interrupted_twice(disturbed, undisturbed, injected):
    run = disturbed()
    for step, calls in ((7, 1), (12, 20), (18, 5)):
        file = f"*/.step-{step:08d}.ckpt.tmp-*"
        process = run.fork(
            at_step(step - (newest_checkpoint(run.run) if injected.count else 0), INT),
            Fault("write", file, "half", calls, INT),
        )
        assert process.wait(20) == 130 and process.suffered == 2, process.said
        injected()
        assert newest_checkpoint(run.run) == (step - 1) // 5 * 5
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
    injected.held(3)


@pytest.mark.fault(
    "S3",
    "SIGHUP of a terminal that closes, SIGUSR1 and SIGUSR2 of a batch system",
    "exit codes 129, 138 and 140 after the step, which is saved; to the bit",
)
def test_other_signals(disturbed, undisturbed, injected):
    run = disturbed(*LONG)
    for number, code in ((signal.SIGHUP, 129), (signal.SIGUSR1, 138), (signal.SIGUSR2, 140)):
        process = run.fork(at_step(11, number))
        assert process.wait(20) == code and process.suffered == 1, process.said
        injected()
        assert AGAIN in process.said and "Traceback" not in process.said
        assert newest_checkpoint(run.run) == 11 * injected.count == len(metrics(run.run))
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == 90
    injected.held(3)


LOADING = ["build_corpus", "load_model", "attach", "require_fit"]


@pytest.mark.fault(
    "S4",
    "SIGTERM and SIGINT while documents and model are loaded",
    "exit code 143 or 130 at once, and no folder is left",
)
def test_stopped_while_loading(disturbed, injected):
    for number, name in zip((TERM, INT, TERM, INT), LOADING, strict=True):
        run = disturbed()
        process = run.fork(Fault(f"unimem.training.prepare:{name}", "*", "after", 1, number))
        assert process.wait(20) == 128 + number and process.suffered == 1, process.said
        injected()
        assert "Traceback" not in process.said and not run.run.exists()
        injected.held()


ENDING = [
    Fault("os.fsync", "*/model/*", "after", 1, INT),
    Fault("unimem.training.run:evaluate_all", "*", "before", 1, TERM),
    Fault("unimem.evaluation.run:score", "*", "after", 2, INT),
    Fault("write", "*/documents.npz", "half", 2, TERM),
    Fault("os.replace", "*/result.json", "before", 1, TERM),
]


@pytest.mark.fault(
    "S4",
    "SIGTERM and SIGINT while the model is saved, documents are read and the result is written",
    "exit code 143 or 130; no result; the end is made again, to the bit",
)
def test_stopped_at_the_end(disturbed, undisturbed, injected):
    run = disturbed()
    for fault in ENDING:
        process = run.fork(fault)
        assert process.wait(20) == 128 + fault.send and process.suffered == 1, process.said
        injected()
        assert "Traceback" not in process.said and not (run.run / "result.json").exists()
    assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
    injected.held(len(ENDING))


WRITING = [
    ("write", "*/.step-00000010.ckpt.tmp-*", "half"),
    ("os.fsync", "*/.step-00000010.ckpt.tmp-*", "before"),
    ("os.replace", "*/step-00000010.ckpt.sha256", "after"),
    ("os.replace", "*/step-00000010.ckpt", "before"),
    ("os.unlink", "*/step-00000005.ckpt.sha256", "after"),
]


@pytest.mark.fault(
    "S5",
    "SIGTERM and SIGINT at five places in the writing of a checkpoint",
    "it is finished; exit code 143 or 130 after a whole step; to the bit",
)
def test_stopped_while_a_checkpoint_is_written(disturbed, undisturbed, injected):
    for i, place in enumerate(WRITING):
        run = disturbed()
        fault = Fault(*place, 1, (TERM, INT)[i % 2])
        process = run.fork(fault)
        assert process.wait(20) == 128 + fault.send and process.suffered == 1, process.said
        injected()
        assert newest_checkpoint(run.run) == metrics(run.run)[-1]["step"] in (10, 11, 15, 16)
        assert compare(run.finish(), undisturbed(run.arguments[:-1])).steps == STEPS
        injected.held()
        shutil.rmtree(run.run)
