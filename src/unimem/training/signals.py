"""Signals that ask a process to end: finish the step, save, leave."""

import os
import signal
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""What ends a process: SIGHUP comes when a terminal closes, SIGUSR1 and SIGUSR2 are how batch
systems warn a job before its time is over."""


def heeded() -> list[int]:
    """List the stopping signals to take.

    All but those that this process was told to ignore, as `nohup` does with SIGHUP; SIGTERM and
    SIGINT are taken in any case, also in a job that a script put into the background.
    """
    always = (signal.SIGTERM, signal.SIGINT)
    return [n for n in STOPPING if n in always or signal.getsignal(n) is not signal.SIG_IGN]


class StopSignals:
    """While entered, the first signal is noted during training, and ends the process elsewhere.

    `received` is the signal, to be looked at after every optimizer step. A Ctrl-C after that
    leaves at once; the last checkpoint is then the one before. Exit codes are 128 + signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.getsignal(number) for number in heeded()}
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, also from Lightning.

        Lightning would leave with exit code 0 at SIGTERM, and at SIGUSR1 under Slurm queue the job
        again and train on.
        """
        for number in self._previous:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.received = number
        if not self.training:
            raise SystemExit(128 + number)
