"""The grid of a study: every combination of the values that its overrides name."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, cast

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException

from unimem.config import ConfigError, parse_overrides
from unimem.overrides import Overrides, shown, text_of
from unimem.words import counted

MOST_CELLS = 10_000
"""Combinations that are made: each is composed and checked, which takes a tenth of a second."""


def combinations(grids: Sequence[Overrides]) -> list[Overrides]:
    """Return all combinations of all grids: one value for every override of a grid.

    Raises `ConfigError` for values that cannot be listed, or if there is no combination, or more
    than `MOST_CELLS`.
    """
    require_few(grids)
    found = [combination for grid in grids for combination in _product(grid)]
    if not found:
        empty = {text_of(o) for grid in grids for o in grid.values() if not values(o)}
        raise ConfigError(f"a sweep of 0 cells: no values in {', '.join(sorted(empty))}")
    return found


def varied(found: Sequence[Overrides]) -> list[str]:
    """Name the overrides that are not the same in all combinations."""
    keys = dict.fromkeys(itertools.chain.from_iterable(found))
    lines = [{key: override.input_line for key, override in c.items()} for c in found]
    return [key for key in keys if len({line.get(key) for line in lines}) > 1]


def labels(found: Sequence[Overrides], otherwise: str) -> list[str]:
    """Return what sets each combination apart; `otherwise` where nothing does."""
    keys = varied(found)
    return [" ".join(text_of(c[key]) for key in keys if key in c) or otherwise for c in found]


def values(override: Override) -> list[Override]:
    """Return an override once for each of its values.

    Raises `ConfigError` if they cannot be listed.
    """
    if not override.is_sweep_override():
        return [override]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} cannot be listed; use range(), choice() or a,b")
    try:
        listed = list(override.sweep_string_iterator())
    except HydraException:
        raise ConfigError(f"{override.input_line}: name the values, as in a,b") from None
    lines = [f"{override.get_key_element()}={value}" for value in listed]
    parsed = parse_overrides(lines)
    return [replace(one, input_line=line) for one, line in zip(parsed, lines, strict=True)]


def require_few(grids: Sequence[Mapping[str, Override]]) -> None:
    """Raise `ConfigError` if grids have more than `MOST_CELLS` combinations. None is made."""
    cells = sum(math.prod(map(num_values, grid.values())) for grid in grids)
    if cells > MOST_CELLS:
        several = [o for grid in grids for o in grid.values() if num_values(o) > 1]
        listed = ", ".join(
            f"{counted(num_values(o), 'value')} of {o.key_or_group}" for o in several
        )
        raise ConfigError(
            f"a sweep of {_large(cells)} cells ({shown(listed)}); at most {MOST_CELLS:,} are made: "
            "give fewer values, or draw some of them with unimem-search"
        )


def num_values(override: Override) -> int:
    """Count the values of an override without listing them; 1 where they cannot be counted.

    Raises `ConfigError` for a range that has no end.
    """
    given: Any = override.value() if override.is_sweep_override() else None
    if isinstance(given, ChoiceSweep):
        return len(given.list)
    if isinstance(given, list):
        return len(cast(list[Any], given))
    if isinstance(given, RangeSweep):
        try:
            return len_of_range(given)
        except ValueError as error:
            raise ConfigError(f"{override.input_line}: {error}") from None
    return 1


def len_of_range(given: RangeSweep) -> int:
    """Count the numbers of a range. Raises ValueError for one that has no end."""
    ends: list[Any] = [given.start, given.stop, given.step]
    if not all(math.isfinite(end) for end in ends) or given.step == 0:
        raise ValueError("a range has two ends that are numbers, and a step that is not 0")
    start, stop, step = map(Fraction, ends)
    return max(0, math.ceil((stop - start) / step))


def _large(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"more than {10**15:,}"


def _product(grid: Overrides) -> Iterator[Overrides]:
    return map(Overrides, itertools.product(*map(values, grid.values())))
