"""Runs the trials of a search as a sweep runs its cells."""

from unimem.studies.run.launch import Launcher
from unimem.studies.run.runner import Display, Runner, State, Status
from unimem.studies.search.trials import Trials, TrialStatus


class TrialRunner(Runner):
    """A runner that draws a trial whenever a slot is free."""

    def __init__(self, trials: Trials, launcher: Launcher, display: Display):
        super().__init__([], launcher, display)
        self._trials = trials
        self.statuses.extend(trials.known())

    def _start(self) -> None:
        super()._start()
        while self.received is None and self._has_free_slot():
            status = self._trials.draw()
            if status is None:
                return
            self.statuses.append(status)
            super()._start()

    def _has_free_slot(self) -> bool:
        return len(self._open()) + len(self._running) < self._launcher.slots

    def _set(self, status: Status, state: State) -> None:
        super()._set(status, state)
        if isinstance(status, TrialStatus) and state in (State.FINISHED, State.FAILED):
            self._trials.ended(status)
