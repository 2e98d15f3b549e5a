"""Runs the cells of a study: each once, some at a time, whatever becomes of the others."""

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from unimem.runs.signature import code_changed
from unimem.studies.cells import Cell
from unimem.studies.run.cell_state import begun, finished
from unimem.studies.run.launch import Launcher, Run
from unimem.training.out_of_memory import OUT_OF_MEMORY
from unimem.training.signals import stopping_signals
from unimem.words import system_error

POLL = 0.1
"""Seconds between two looks at the cells."""

ELSEWHERE = 75
"""Exit status of a run that found its cell at work in another sweep."""


class State(StrEnum):
    """Where a cell is in this sweep."""

    WAITING = "waiting"
    RUNNING = "running"
    ELSEWHERE = "elsewhere"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(kw_only=True)
class Status:
    """A cell in this sweep.

    Args:
        before: it was finished before this sweep came to it.
        resumed: it went on from what an earlier process left.
        reason: why it failed.
        seconds: how long its process ran.
    """

    cell: Cell
    state: State = State.WAITING
    before: bool = False
    resumed: bool = False
    reason: str = ""
    began: float = 0.0
    seconds: float = 0.0


class Display(Protocol):
    """Shows a sweep to whoever watches."""

    def changed(self, status: Status) -> None:
        """Take note of a cell that started or ended."""
        ...

    def look(self, statuses: Sequence[Status]) -> None:
        """Show all cells, if it is time to."""
        ...


class Runner:
    """One sweep. A signal lets the cells save and leave; a second Ctrl-C kills them."""

    def __init__(self, cells: Sequence[Cell], launcher: Launcher, display: Display):
        self.statuses = [Status(cell=cell) for cell in cells]
        self.received: int | None = None
        self._launcher, self._display = launcher, display
        self._running: dict[int, tuple[Status, Run]] = {}

    def run(self) -> int:
        """Run until nothing is left to do; give the exit status of the sweep."""
        with self._signals():
            while True:
                self._reap()
                if self.received is None:
                    self._start()
                self._display.look(self.statuses)
                if not self._running and (self.received or not self._open()):
                    break
                time.sleep(POLL)
        if all(status.state == State.FINISHED for status in self.statuses):
            return 0
        return 1 if self.received is None else 128 + self.received

    def _open(self) -> list[Status]:
        return [s for s in self.statuses if s.state in (State.WAITING, State.ELSEWHERE)]

    def _reap(self) -> None:
        for slot, (status, run) in list(self._running.items()):
            code = run.poll()
            if code is None:
                continue
            del self._running[slot]
            if finished(status.cell):
                self._set(status, State.FINISHED)
            elif code == ELSEWHERE:
                self._set(status, State.ELSEWHERE)
            elif self.received is not None:
                self._set(status, State.STOPPED)
            else:
                self._fail(status, reason(code, status.cell.folder))

    def _start(self) -> None:
        for status in self._open():
            cell = status.cell
            base = self._state_of(cell.base)
            if finished(cell):
                status.before = True
                self._set(status, State.FINISHED)
            elif base == State.FAILED:
                self._fail(status, "the base run failed")
            elif base == State.FINISHED and len(self._running) < self._launcher.slots:
                self._start_one(status)
            if self.received is not None:
                return

    def _start_one(self, status: Status) -> None:
        if code_changed():
            self._fail(status, "the code has changed since the sweep began; start it again")
            return
        slot = min(set(range(self._launcher.slots)) - self._running.keys())
        resumed = begun(status.cell)
        try:
            run = self._launcher.start(status.cell, slot)
        except OSError as error:  # as on a full disk, which others may not need
            self._fail(status, f"cannot be started: {system_error(error)}")
            return
        if run is None:
            status.state = State.ELSEWHERE
            return
        self._running[slot] = status, run
        if self.received is not None:
            run.stop()  # the signal came while it was being started
        status.resumed, status.began = resumed, time.monotonic()
        self._set(status, State.RUNNING)

    def _state_of(self, base: Cell | None) -> State:
        """Return the state of a cell's base; a cell without one need not wait."""
        if base is None:
            return State.FINISHED
        return next(s.state for s in self.statuses if s.cell.signature == base.signature)

    def _fail(self, status: Status, reason: str) -> None:
        status.reason = reason
        self._set(status, State.FAILED)

    def _set(self, status: Status, state: State) -> None:
        status.state = state
        if status.began:
            status.seconds = time.monotonic() - status.began
        self._display.changed(status)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        previous: dict[int, Any] = {n: signal.signal(n, self._handle) for n in stopping_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again = self.received is not None and number == signal.SIGINT
        self.received = self.received or number
        for _, run in list(self._running.values()):
            if again:
                run.kill()
            else:
                run.stop()


def reason(code: int, folder: Path) -> str:
    """Return why a cell whose process ended with an exit status has no result in its folder."""
    if code == 0:
        return f"its result is of other settings; remove {folder}"
    if code == OUT_OF_MEMORY:
        return f"out of memory (exit status {code})"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL (often: out of memory)"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
