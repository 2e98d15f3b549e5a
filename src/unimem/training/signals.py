"""SIGTERM and Ctrl-C: finish the step, save, leave."""

import os
import signal
from types import FrameType
from typing import Any

STOPPING = (signal.SIGTERM, signal.SIGINT)


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
        self._previous = {number: signal.getsignal(number) for number in STOPPING}
        self.install()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, also from Lightning, which would leave with exit code 0."""
        for number in STOPPING:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.received = number
        if not self.training:
            raise SystemExit(128 + number)
