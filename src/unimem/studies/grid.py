"""The grid of a study: every combination of the values that its overrides name."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from unimem.config import ConfigError

Combination = dict[str, str]
"""One value for every override of a grid: its name -> the override as it is written."""


def combinations(grids: Sequence[Mapping[str, Override]]) -> list[Combination]:
    """Give all combinations of all grids.

    Raises `ConfigError` for values that cannot be listed, or if there is no combination.
    """
    found = [combination for grid in grids for combination in _product(grid)]
    if not found:
        empty = {f"{o.input_line}" for grid in grids for o in grid.values() if not values(o)}
        raise ConfigError(f"a sweep of 0 cells: no values in {', '.join(sorted(empty))}")
    return found


def varied(found: Sequence[Combination]) -> list[str]:
    """Name the overrides that are not the same in all combinations."""
    keys = dict.fromkeys(itertools.chain.from_iterable(found))
    return [key for key in keys if len({c.get(key) for c in found}) > 1]


def labels(found: Sequence[Combination], otherwise: str) -> list[str]:
    """Say what sets each combination apart; `otherwise` where nothing does."""
    keys = varied(found)
    return [" ".join(c[key] for key in keys if key in c) or otherwise for c in found]


def values(override: Override) -> list[str]:
    """Write an override once for each of its values.

    Raises `ConfigError` if they cannot be listed.
    """
    if not override.is_sweep_override():
        return [override.input_line or ""]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} cannot be listed; use range(), choice() or a,b")
    try:
        listed = list(override.sweep_string_iterator())
    except HydraException:
        raise ConfigError(f"{override.input_line}: name the values, as in a,b") from None
    return [f"{override.get_key_element()}={value}" for value in listed]


def _product(grid: Mapping[str, Override]) -> Iterator[Combination]:
    axes = {key: values(override) for key, override in grid.items()}
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))
