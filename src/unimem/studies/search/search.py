"""A search: runs whose settings Optuna draws, each where the earlier ones were good."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal

import optuna
from optuna.samplers import RandomSampler
from pydantic import BeforeValidator, Field, model_validator

from unimem.config import ConfigError
from unimem.runs.layout import RESULT
from unimem.runs.records import read_result
from unimem.settings import Count
from unimem.studies.cells import Cell, SweepOptions, make_cell, parse, read_options
from unimem.studies.search.space import Drawn, Space, is_subset, read_space
from unimem.words import counted

REFUSED = {
    "name": "runs are named by their settings",
    "resume": "runs are continued by themselves",
    "sweeps": "write what is fixed as arguments",
    "hydra": "a search runs no Hydra job",
}

PROBES = 20
"""Combinations that are tried before a search is said to be impossible."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


class SearchOptions(SweepOptions):
    """What `conf/search.yaml` says beside the settings of a run."""

    trials: Count
    sampler: Literal["tpe", "random"]
    sampler_seed: Annotated[int, Field(ge=0)]
    objective: Annotated[list[str], Field(min_length=1), BeforeValidator(_as_list)]
    direction: Annotated[list[Literal["minimize", "maximize"]], BeforeValidator(_as_list)]

    @model_validator(mode="after")
    def _a_direction_for_each(self) -> "SearchOptions":
        if len(self.direction) not in (1, len(self.objective)):
            raise ValueError(
                f"direction names {len(self.direction)} directions for {len(self.objective)} "
                "objectives; give one for all, or one for each"
            )
        return self

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of its runs in W&B."""
        return ("search",)

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        """The direction of each objective."""
        return self.direction * (len(self.objective) // len(self.direction))


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search that can run: at least one combination of its values can.

    Args:
        options: how it runs and what it is called.
        arguments: the command line that it came from.
        space: what is fixed, and what is drawn.
        example: one of its runs.
    """

    options: SearchOptions
    arguments: tuple[str, ...]
    space: Space
    example: Cell

    def cell(self, drawn: Drawn) -> Cell:
        """Make the run of what was drawn. Raises `ConfigError` if there is none."""
        return _cell(self.options, self.space, drawn)

    def values(self, cell: Cell) -> list[float]:
        """Read the objectives of a finished run. Raises `ConfigError` if it has none such."""
        numbers = dict(_numbers(read_result(cell.folder)))
        for name in self.options.objective:
            if name not in numbers:
                close = get_close_matches(name, numbers, 3, 0.5)
                hint = (
                    f"did you mean {' or '.join(close)}?" if close else f"it has {_some(numbers)}"
                )
                raise ConfigError(
                    f"objective={name} is not a number of {cell.folder / RESULT}; {hint} The runs "
                    "are kept: give the search another name with study=, and they are read"
                )
        return [numbers[name] for name in self.options.objective]


def read_search(arguments: Sequence[str]) -> Search:
    """Turn the arguments of `unimem-search` into a search, without torch.

    Raises `ConfigError` if nothing of it can run.
    """
    given = parse([argument for argument in arguments if not is_subset(argument)])
    for key in given:
        if reason := REFUSED.get(key.split(".")[0]):
            raise ConfigError(f"{key} cannot be set in a search: {reason}")
    options = read_options(SearchOptions, "search", given)
    _require_objectives(options)
    own = SearchOptions.names()
    of_runs = [a for a in arguments if is_subset(a) or not parse([a]).under(own)]
    space = read_space(of_runs)
    return Search(
        options=options,
        arguments=tuple(arguments),
        space=space,
        example=_example(options, space),
    )


OBJECTIVES = (
    "evaluation",
    "state_bytes_per_row",
    "parameters",
    "tokens_per_second",
    "training_seconds",
    "seconds",
    "peak_memory_bytes",
)
"""Sections and numbers of result.json that a search can look for; the rest is settings."""


def _require_objectives(options: SearchOptions) -> None:
    """Refuse, before the first trial, an objective that no result can have."""
    for name in options.objective:
        first = name.partition(".")[0]
        if first not in OBJECTIVES or (first == "evaluation") != ("." in name):
            close = get_close_matches(name, OBJECTIVES, 1, 0.6)
            hint = f"did you mean {close[0]}? " if close else ""
            raise ConfigError(
                f"objective={name} is not a number of result.json; {hint}for example "
                "evaluation.scores.own.nll, evaluation.comparisons.own-off.difference, "
                f"{', '.join(OBJECTIVES[1:])}"
            )


def _some(numbers: Collection[str]) -> str:
    shown = [name for name in numbers if name.startswith("evaluation.")][:8]
    return f"{', '.join(shown)} and {counted(len(numbers) - len(shown), 'more', 'more')}."


def _cell(options: SearchOptions, space: Space, drawn: Drawn) -> Cell:
    own = space.overrides(drawn)
    return make_cell(" ".join(own), [*space.fixed, *own], options)


def _example(options: SearchOptions, space: Space) -> Cell:
    """Return a run of the space. Raises `ConfigError` with what is most often wrong."""
    study = optuna.create_study(sampler=RandomSampler(options.sampler_seed))
    problems: Counter[str] = Counter()
    for _ in range(PROBES):
        try:
            return _cell(options, space, study.ask(space.parameters).params)
        except ConfigError as error:
            problems[str(error)] += 1
    ((problem, count),) = problems.most_common(1)
    raise ConfigError(
        f"the search does not start: none of {PROBES} combinations drawn can run; "
        f"of {count} of them:\n{problem}"
    )


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
