"""Signals that ask a process to stop: it finishes the step, saves and exits."""

import os
import signal
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""SIGHUP is sent when a terminal closes, SIGUSR1 and SIGUSR2 by batch systems before the time limit
of a job."""


def stopping_signals() -> list[int]:
    """Return the signals to handle.

    A signal that this process inherited as ignored (SIGHUP under `nohup`) is not handled; SIGTERM
    and SIGINT always are, also in a background job of a script.
    """
    always = (signal.SIGTERM, signal.SIGINT)
    return [n for n in STOPPING if n in always or signal.getsignal(n) is not signal.SIG_IGN]


class StopSignals:
    """Context manager: during training the first signal is recorded, elsewhere it ends the process.

    `received` is the signal, checked after every optimizer step. A second Ctrl-C exits at once,
    with the previous checkpoint as the last one. Exit codes are 128 + signal.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.training = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        self._previous = {number: signal.getsignal(number) for number in stopping_signals()}
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Install the handlers, in place of Lightning's.

        Lightning would exit with code 0 at SIGTERM and, under Slurm, requeue the job at SIGUSR1.
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
