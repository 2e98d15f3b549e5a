"""A study as its folder tells it: which cells it consists of, and what became of each."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimem.results.collect import STUDY, RunRecord, read_run

SEED = "seed"


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell of a study; `run` is None if it was never begun."""

    label: str
    overrides: dict[str, str]
    folder: Path
    run: RunRecord | None

    @property
    def result(self) -> dict[str, Any] | None:
        """The result of a finished cell."""
        return None if self.run is None else self.run.result

    def trouble(self, count: int = 3) -> list[str]:
        """Say how far an unfinished cell is, and give the last lines of its log."""
        log = self.folder.with_name(f"{self.folder.name}.log")
        lines = log.read_text(errors="replace").splitlines()[-count:] if log.is_file() else []
        return ["not begun" if self.run is None else self.run.status(), *lines]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The cells that differ by their seed alone; `varied` is what sets them apart from others."""

    label: str
    varied: dict[str, str]
    cells: tuple[CellRecord, ...]

    @property
    def finished(self) -> dict[int, CellRecord]:
        """The finished cells by seed."""
        return {cell.result["seed"]: cell for cell in self.cells if cell.result is not None}


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """What `study.json` says; `fields` has the study file's own fields, the claim among them."""

    name: str
    arguments: tuple[str, ...]
    fields: dict[str, Any]
    cells: tuple[CellRecord, ...]

    @property
    def command(self) -> str:
        """The command that runs the study, or goes on with it."""
        return shlex.join(["unimem-sweep", *self.arguments])

    @property
    def unfinished(self) -> list[CellRecord]:
        """The cells without a result."""
        return [cell for cell in self.cells if cell.result is None]

    def groups(self) -> list[Group]:
        """Put the cells together that differ by their seed alone, in the order of the study."""
        varied = _varied([cell.overrides for cell in self.cells])
        # What some cells have, always with one value, is left out of names that can do without.
        enough = [key for key in varied if len(varied[key] - {None}) > 1]
        found: dict[tuple[str | None, ...], list[CellRecord]] = {}
        for cell in self.cells:
            found.setdefault(tuple(map(cell.overrides.get, varied)), []).append(cell)
        groups: list[Group] = []
        names = {tuple(map(cells[0].overrides.get, enough)) for cells in found.values()}
        for cells in found.values():
            given = cells[0].overrides
            own = {key: given[key] for key in enough if key in given}
            if len(names) < len(found) or not own:
                own = {key: given[key] for key in varied if key in given}
            label = " ".join(f"{key}={value}" for key, value in own.items())
            groups.append(Group(label=label or "the run", varied=own, cells=tuple(cells)))
        return groups


def read_study(output: Path, name: str) -> StudyRecord:
    """Read `study.json` of a study and the folders of its cells.

    Raises ValueError if there is no such study.
    """
    path = output / name / STUDY
    if not path.is_file():
        known = ", ".join(sorted(p.parent.name for p in output.glob(f"*/{STUDY}"))) or "none yet"
        raise ValueError(f"{path} does not exist; run the study first (in {output}: {known})")
    record = json.loads(path.read_text(encoding="utf-8"))
    cells = [
        CellRecord(
            label=cell["label"],
            overrides=dict(line.split("=", 1) for line in cell["overrides"]),
            folder=output / cell["folder"],
            run=read_run(output / cell["folder"]),
        )
        for cell in record["cells"]
    ]
    known = ("study", "arguments", "cells")
    return StudyRecord(
        name=record["study"],
        arguments=tuple(record["arguments"]),
        fields={key: value for key, value in record.items() if key not in known},
        cells=tuple(cells),
    )


def number(text: str | None) -> float | None:
    """Read a value of an override as a number; None for anything else."""
    try:
        return float(text or "")
    except ValueError:
        return None


def _varied(overrides: Sequence[dict[str, str]]) -> dict[str, set[str | None]]:
    """Give the values of every setting, the seed apart, that is not the same in all cells."""
    keys = dict.fromkeys(key for given in overrides for key in given if key != SEED)
    values = {key: {given.get(key) for given in overrides} for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}
