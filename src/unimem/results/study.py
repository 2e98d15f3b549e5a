"""A study as its folder tells it: which cells it consists of, and what became of each."""

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unimem.results.select import in_words
from unimem.runs.layout import STUDY
from unimem.runs.records import RunRecord, read_run

SEED = "seed"
BASE_MODEL = "model.name"
"""Where a cell finds its base run's weights; it differs with the seed and names no setting."""

MOST_TOLD = 6
"""Settings beside the method that a name is made of."""


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell of a study; `run` is None if it was never begun, or if its record cannot be read.

    `overrides` are those that decide what is measured: neither the seed nor the path of the base
    run's weights is among them. damage: which file cannot be read, and why.
    """

    label: str
    overrides: dict[str, str]
    folder: Path
    run: RunRecord | None
    damage: str = ""

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished cell."""
        return None if self.run is None else self.run.result

    def last_log_lines(self, count: int = 3) -> list[str]:
        """Return how far an unfinished cell is, and give the last lines of its log."""
        log = self.folder.with_name(f"{self.folder.name}.log")
        lines = log.read_text(errors="replace").splitlines()[-count:] if log.is_file() else []
        if self.damage:
            return [self.damage, *lines]
        return ["not begun" if self.run is None else self.run.status(), *lines]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells that differ by their seed alone.

    varied: of the overrides that they share, those that tell them from other groups. label: these
    in words.
    """

    label: str
    varied: dict[str, str]
    cells: tuple[CellRecord, ...]

    @property
    def overrides(self) -> dict[str, str]:
        """What all its cells were given."""
        return self.cells[0].overrides

    @property
    def finished(self) -> dict[int, CellRecord]:
        """The finished cells by seed."""
        return {cell.result["seed"]: cell for cell in self.cells if cell.result is not None}

    @property
    def unfinished(self) -> list[CellRecord]:
        """The cells that are not finished."""
        return [cell for cell in self.cells if cell.result is None]


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What `study.json` says; `fields` has the study file's own fields, the claim among them.

    bases: the runs whose weights the cells start from.
    """

    name: str
    arguments: tuple[str, ...]
    fields: dict[str, Any]
    cells: tuple[CellRecord, ...]
    bases: tuple[CellRecord, ...] = ()

    @property
    def command(self) -> str:
        """The command that runs the study, or goes on with it."""
        return shlex.join([self.fields.get("command", "unimem-sweep"), *self.arguments])

    @property
    def unfinished(self) -> list[CellRecord]:
        """The cells without a result."""
        return [cell for cell in self.cells if cell.result is None]

    def groups(self) -> list[Group]:
        """Put the cells together that differ by their seed alone, in the order of the study."""
        found: dict[tuple[tuple[str, str], ...], list[CellRecord]] = {}
        for cell in self.cells:
            found.setdefault(tuple(sorted(cell.overrides.items())), []).append(cell)
        return labelled([Group(label="", varied={}, cells=tuple(c)) for c in found.values()])


def labelled(groups: Sequence[Group]) -> list[Group]:
    """Name the groups by as few overrides as tell them apart, the method before all others."""
    given = [group.overrides for group in groups]
    keys = _telling(given, differing(given))
    labels = [{key: own[key] for key in keys if key in own} for own in given]
    shorter = [
        {k: v for k, v in own.items() if not _goes_without_saying(k, v, labels)} for own in labels
    ]
    if len({str(own) for own in shorter}) == len(labels):
        labels = shorter
    plain = "the run" if len(groups) == 1 else "unchanged"
    return [
        replace(group, label=in_words(own) or plain, varied=own)
        for group, own in zip(groups, labels, strict=True)
    ]


def differing(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the settings that are not the same everywhere, the method first."""
    keys = dict.fromkeys(key for given in overrides for key in given)
    found = [key for key in keys if len({given.get(key) for given in overrides}) > 1]
    return sorted(found, key=lambda key: key != "method")


def read_study(output: Path, name: str) -> StudyRecord:
    """Read `study.json` of a study and the folders of its cells.

    Raises ValueError if there is no such study.
    """
    path = output / name / STUDY
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in output.glob(f"*/{STUDY}"))) or "none yet"
        raise ValueError(f"{path} does not exist; run the study first (in {output}: {known})")
    known = ("study", "arguments", "bases", "cells")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return StudyRecord(
            name=record["study"],
            arguments=tuple(record["arguments"]),
            fields={key: value for key, value in record.items() if key not in known},
            cells=tuple(_cell(output, cell) for cell in record["cells"]),
            bases=tuple(_cell(output, base) for base in record.get("bases", [])),
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); run the study again, its finished cells are kept"
        ) from None


def _cell(output: Path, entry: Mapping[str, Any]) -> CellRecord:
    lines = (line.lstrip("+").partition("=") for line in entry["overrides"])
    overrides = {key: value for key, _, value in lines}
    dropped = {SEED, BASE_MODEL} if entry.get("base") else {SEED}
    folder = output / entry["folder"]
    run, damage = None, ""
    try:
        run = read_run(folder)
    except ValueError as error:
        damage = str(error)
    return CellRecord(
        label=entry["label"],
        overrides={key: value for key, value in overrides.items() if key not in dropped},
        folder=folder,
        run=run,
        damage=damage,
    )


def _telling(given: Sequence[Mapping[str, str]], varied: Sequence[str]) -> Sequence[str]:
    """Return the fewest settings whose values tell all groups apart.

    Those that every group has, and that vary within a method, are always among them: of trials
    that were drawn a few settings may tell each apart, and leave out what else it was given. If
    there are such, each group is told by something that it has, none by what it lacks.
    """
    first = [key for key in varied if key == "method"]
    whole = [key for key in varied[len(first) :] if _varies_within_methods(key, given)]
    first += whole if len(whole) <= MOST_TOLD else []
    others = [key for key in varied if key not in first]
    apart: Sequence[str] | None = None
    for count in range(min(len(others), MOST_TOLD) + 1):
        for chosen in itertools.combinations(others, count):
            keys = [*first, *chosen]
            labels = [{(key, own[key]) for key in keys if key in own} for own in given]
            if not any(a <= b for a, b in itertools.permutations(labels, 2)):
                return keys
            if apart is None and len({frozenset(own) for own in labels}) == len(labels):
                apart = keys
    return varied if apart is None else apart


def _varies_within_methods(key: str, given: Sequence[Mapping[str, str]]) -> bool:
    """Whether all groups have this setting, and two of one method have other values."""
    pairs = {(own.get("method"), own.get(key)) for own in given}
    methods = {method for method, _ in pairs}
    return all(key in own for own in given) and len(pairs) > len(methods)


def _goes_without_saying(key: str, value: str, labels: Sequence[Mapping[str, str]]) -> bool:
    """Whether all groups but one, of several, have this value."""
    return len(labels) > 3 and sum(own.get(key) == value for own in labels) == len(labels) - 1
