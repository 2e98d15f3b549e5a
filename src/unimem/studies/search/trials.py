"""The trials of a search: drawn, judged, and remembered for the next command."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import optuna
from optuna.importance import get_param_importances
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from unimem.config import ConfigError
from unimem.runs.signature import code_changed
from unimem.studies.cells import Cell
from unimem.studies.run.cell_state import write_study
from unimem.studies.run.runner import State, Status
from unimem.studies.search.journal import JOURNAL, Journal
from unimem.studies.search.search import Search
from unimem.studies.study import Study

logger = logging.getLogger(__name__)

MISSES = 50
"""Draws in a row without a run before a search gives up."""

ENOUGH = 20
"""Finished trials from which importances are told: their best tenth is then more than one."""

_NAME = "search"
_OBJECTIVES, _SIGNATURE, _REASON = "objectives", "signature", "reason"


@dataclass(kw_only=True)
class TrialStatus(Status):
    """A trial in this command; trials that drew the same have the same cell."""

    number: int


@dataclass(frozen=True, kw_only=True)
class Best:
    """A finished run and its objectives."""

    values: list[float]
    cell: Cell


class Trials:
    """The trials of a search, those of earlier commands too.

    Raises `ConfigError` if those are of another search, or another process is at it.
    """

    def __init__(self, search: Search):
        self._search = search
        self._parameters = search.space.parameters
        self._folder = Path(search.options.output) / search.options.study
        self._cells: dict[int, Cell] = {}
        self._journal = Journal(self._folder)
        self._study = optuna.create_study(
            study_name=_NAME,
            storage=self._journal,
            directions=search.options.directions,
            load_if_exists=True,
        )
        self._require_same_search()
        self._left = search.options.trials - len(self.finished)

    def close(self) -> None:
        """Let other processes go on with the search."""
        self._journal.close()

    @property
    def finished(self) -> list[FrozenTrial]:
        """The trials that came to their end."""
        return self._of(TrialState.COMPLETE)

    def count(self) -> str:
        """Count the trials: `20 of 20 trials finished, 14 of them different, 2 impossible`."""
        finished = self.finished
        counts = {
            "of them different": len({self._cells[t.number].signature for t in finished}),
            "to be continued": len(self._of(TrialState.RUNNING)),
            "failed": sum(map(self._is_drawn, self._of(TrialState.FAIL))),
            "impossible": len(self._of(TrialState.PRUNED)),
        }
        found = "".join(f", {count} {name}" for name, count in counts.items() if count)
        return f"{len(finished)} of {self._search.options.trials} trials finished{found}"

    def known(self) -> Iterator[TrialStatus]:
        """Take up the trials of earlier commands: the finished ones, and those to be continued."""
        for trial in self.finished:
            yield TrialStatus(cell=self._cells[trial.number], number=trial.number)
        for trial in self._of(TrialState.RUNNING):
            if self._left > 0 and (status := self._begin(trial)) is not None:
                yield status

    def draw(self) -> TrialStatus | None:
        """Draw a trial; None if no more are asked for, or none is found that can run."""
        for _ in range(MISSES):
            if self._left <= 0:
                return None
            if code_changed():
                logger.warning("the code has changed since the search began; no more is drawn")
                return None
            self._study.sampler = self._sampler()
            number = self._study.ask(self._parameters).number
            if (status := self._begin(self._of()[number])) is not None:
                return status
        logger.warning("%d draws in a row cannot run; the search stops", MISSES)
        self._left = 0
        return None

    def ended(self, status: TrialStatus) -> None:
        """Record what became of a trial. Raises `ConfigError` if its result has no objective."""
        if self._of()[status.number].state != TrialState.RUNNING:
            return  # it was finished before
        if status.state == State.FINISHED:
            self._study.tell(status.number, self._search.values(status.cell))
        elif status.began:  # what could not even start is for the next command
            self._give_up(status.number, TrialState.FAIL, status.reason)

    def best(self) -> list[Best]:
        """Return the finished runs, the best first; of several objectives those that none beats."""
        single = len(self._search.options.objective) == 1
        sign = 1 if self._search.options.directions[0] == "minimize" else -1
        found: dict[str, Best] = {}
        trials = self.finished if single else self._study.best_trials
        for trial in sorted(trials, key=lambda trial: (sign * trial.values[0], trial.number)):
            cell = self._cells[trial.number]
            found.setdefault(cell.signature, Best(values=trial.values, cell=cell))
        return list(found.values())

    def importances(self) -> dict[str, float]:
        """Return each parameter's share in reaching the best tenth; none of few trials.

        The method is PED-ANOVA (arXiv 2304.10255).
        """
        if len(self.finished) < ENOUGH:
            return {}
        found = get_param_importances(self._study)
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    def _of(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _sampler(self) -> BaseSampler:
        """Make the sampler of one draw, the same whether or not the search was interrupted."""
        drawn = sum(map(self._is_drawn, self._of()))
        options = self._search.options
        seed = int(np.random.SeedSequence([options.sampler_seed, drawn]).generate_state(1)[0])
        return TPESampler(seed=seed) if options.sampler == "tpe" else RandomSampler(seed=seed)

    def _begin(self, trial: FrozenTrial) -> TrialStatus | None:
        """Return the status of a trial that is to run; None if it cannot, which is recorded."""
        try:
            cell = self._search.cell(trial.params)
        except ConfigError as error:
            reason = str(error).removeprefix("invalid configuration:").strip()
            logger.warning("trial %d cannot run, and another is drawn: %s", trial.number, reason)
            self._give_up(trial.number, TrialState.PRUNED, reason)
            return None
        self._left -= 1
        self._note(trial.number, _SIGNATURE, cell.signature)
        self._cells[trial.number] = cell
        write_study(
            Study(
                options=self._search.options,
                arguments=self._search.arguments,
                cells=tuple({cell.signature: cell for cell in self._cells.values()}.values()),
                fields={"command": "unimem-search", "mode": "train"},
            )
        )
        return TrialStatus(cell=cell, number=trial.number)

    def _give_up(self, number: int, state: TrialState, reason: str) -> None:
        self._note(number, _REASON, reason)
        self._study.tell(number, state=state)

    def _note(self, number: int, key: str, value: str) -> None:
        study = self._journal.get_study_id_from_name(_NAME)
        trial = self._journal.get_trial_id_from_study_id_trial_number(study, number)
        self._journal.set_trial_user_attr(trial, key, value)

    def _require_same_search(self) -> None:
        """Refuse trials whose values are not comparable with those to come."""
        options = self._search.options
        asked = dict(zip(options.objective, options.directions, strict=True))
        known = self._study.user_attrs.get(_OBJECTIVES)
        if known is None:
            self._study.set_user_attr(_OBJECTIVES, asked)
        elif known != asked:
            self._refuse("is of other objectives")
        for trial in self._of(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING):
            if trial.state == TrialState.RUNNING and len(trial.params) < len(self._parameters):
                self._give_up(trial.number, TrialState.FAIL, "stopped while it was drawn")
            elif not self._is_drawn(trial):
                self._refuse("is of other values to draw from")
            elif trial.state == TrialState.COMPLETE:
                self._cells[trial.number] = self._same_run(trial)

    def _is_drawn(self, trial: FrozenTrial) -> bool:
        """Whether a trial has all its values; it was not killed while they were drawn."""
        return trial.distributions == self._parameters

    def _same_run(self, trial: FrozenTrial) -> Cell:
        """Return the run of a finished trial, if it would be the same today."""
        try:
            cell = self._search.cell(trial.params)
        except ConfigError:
            cell = None
        if cell is None or cell.signature != trial.user_attrs[_SIGNATURE]:
            self._refuse(f"is of other settings, code or data (trial {trial.number})")
        return cell

    def _refuse(self, reason: str) -> NoReturn:
        self.close()
        raise ConfigError(
            f"{self._folder / JOURNAL} {reason}; give this search another name with study=, and "
            "runs that both have in common are not repeated"
        )
