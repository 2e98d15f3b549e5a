"""Cells of another study as the bases of this one: which, and what they tell of themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

from unimem.config import TEXT_SETTINGS, ConfigError
from unimem.overrides import Overrides
from unimem.studies.cells import Cell
from unimem.studies.grid import values
from unimem.studies.study_file import BaseStudy

CHOOSING = ("seed", "data", "method")
"""Overrides of the command line that choose among the cells of the other study.

They say which weights are read, and cannot be changed once these are trained.
"""


def choose(cells: Sequence[Cell], base: BaseStudy, given: Overrides) -> list[Cell]:
    """Return the cells that `base` names, and of these what the command line chooses.

    Raises `ConfigError` if there is none.
    """
    wanted: dict[str, list[Any]] = {
        key: value if isinstance(value, list) else [value] for key, value in base.where.items()
    }
    found = [cell for cell in cells if _has(cell, wanted)]
    if not found:
        raise ConfigError(f"base: sweeps={base.sweeps} has no cell with {_words(wanted)}")
    chosen = {
        key: [one.value() for one in values(override)]
        for key, override in given.items()
        if key in CHOOSING
    }
    left = [cell for cell in found if _has(cell, chosen)]
    if not left:
        raise ConfigError(
            f"{_words(chosen)}: no cell of sweeps={base.sweeps} that this study starts from has it"
        )
    return left


def _has(cell: Cell, wanted: Mapping[str, Sequence[Any]]) -> bool:
    own = cell.overrides
    return all(
        key in own and _value(key, own[key].value()) in [_value(key, x) for x in wanted[key]]
        for key in wanted
    )


def _value(key: str, value: Any) -> Any:
    """Return a value as the setting takes it: YAML reads the text `true` as a truth value."""
    return str(value).lower() if key in TEXT_SETTINGS and isinstance(value, bool) else value


def _words(wanted: Mapping[str, Sequence[Any]]) -> str:
    return ", ".join(f"{key}={' or '.join(map(str, found))}" for key, found in wanted.items())
