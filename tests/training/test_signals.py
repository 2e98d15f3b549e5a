"""What a signal does to a run: the step is finished and saved, and the exit code tells."""

import logging
import os
import signal
import subprocess
import sys

import pytest
from training.conftest import Runs, metrics, same_weights

from unimem.training.checkpoint import checkpoints, step_of


class SignalAt(logging.Handler):
    """Sends this process a signal when the log says that a step was taken."""

    def __init__(self, step: int, number: int):
        super().__init__()
        self.step, self.number = step, number

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(f"step {self.step} of"):
            os.kill(os.getpid(), self.number)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "more"),
    [
        (signal.SIGTERM, 143, ()),
        (signal.SIGINT, 130, ()),
        (signal.SIGTERM, 143, ("trainer.accumulate=3", "memory.bptt_segments=1")),
    ],
)
def test_signal_ends_run_at_step_boundary_and_resume_is_exact(runs, tmp_path, number, code, more):
    whole = Runs(tmp_path / "whole").start("name=a", *more)
    before = signal.getsignal(number)
    handler = SignalAt(3, number)
    logger = logging.getLogger("unimem.training.metrics")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.raises(SystemExit) as stopped:
            runs.start("name=a", "trainer.checkpoint_every=100", *more)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    assert stopped.value.code == code
    assert signal.getsignal(number) == before
    folder = runs.output / "runs" / "a"
    assert [step_of(path) for path in checkpoints(folder / "checkpoints")] == [3]
    assert not (folder / "result.json").exists()

    continued = runs.start("name=a", "resume=true", "trainer.checkpoint_every=100", *more)
    assert metrics(continued) == metrics(whole)
    assert same_weights(continued, whole)


SCRIPT = """
import sys, time
from unimem.training.signals import StopSignals
with StopSignals() as stop:
    stop.training = sys.argv[1] == "training"
    print("ready", flush=True)
    while stop.received is None:
        time.sleep(0.01)
    print("received", stop.received, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def start():
    def start(*argv: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *argv], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout and process.stdout.readline() == "ready\n"
        return process

    started: list[subprocess.Popen] = []
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_second_ctrl_c_leaves_at_once(start):
    process = start("training")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "received 2\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=5) == 130


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_closed_terminal_and_a_batch_systems_warning_stop_training(start, number):
    process = start("training")
    process.send_signal(number)
    assert process.stdout.readline() == f"received {int(number)}\n"


def test_what_nohup_ignores_stays_ignored():
    script = f"import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n{SCRIPT}"
    process = subprocess.Popen(
        [sys.executable, "-c", script, "training"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "received 15\n"
    process.kill()
    process.communicate()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_training_the_first_signal_ends_the_process(start, number, code):
    process = start("loading")
    process.send_signal(number)
    assert process.wait(timeout=5) == code
