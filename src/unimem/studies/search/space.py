"""What a search varies: the arguments with several values, as dimensions that Optuna draws from.

    memory.topk=4,8,16                        one of these, in no order; as choice(4,8,16)
    injection_layer=range(1,22)               a whole number from 1 to 21
    memory.size=interval(128,1024)            a whole number from 128 to 1023
    trainer.weight_decay=interval(0.0,0.2)    a fraction: an end has a decimal point
    memory.size=tag(log,interval(16,4096))    on a logarithmic scale; range() can be tagged too
    memory.injection.layers=subset(0,4)       any of the layers 0 to 3, a yes or no for each

All but the last is Hydra's sweep syntax. Ends are half-open, as everywhere in Hydra. A draw of no
layer at all is no run: it is refused like any combination that cannot be composed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from unimem.config import ConfigError
from unimem.studies.cells import parse
from unimem.studies.grid import len_of_range

MOST_CHOICES = 1_000
"""Numbers of a subset: each is a parameter of the search."""

LARGEST = 1e18
"""The largest number that is drawn."""

Drawn = Mapping[str, Any]
"""What was drawn of a space: a value for each of its parameters."""


class Dimension(Protocol):
    """An argument with several values."""

    @property
    def parameters(self) -> dict[str, BaseDistribution]:
        """What Optuna draws for it, by name."""
        ...

    def override(self, drawn: Drawn) -> str:
        """Write the values drawn as an override. Raises `ConfigError` if they mean none."""
        ...


@dataclass(frozen=True)
class Value:
    """One value for `key`."""

    key: str
    distribution: BaseDistribution

    @property
    def parameters(self) -> dict[str, BaseDistribution]:
        """Return one parameter, named as the setting."""
        return {self.key: self.distribution}

    def override(self, drawn: Drawn) -> str:
        """Write `key=value`."""
        return f"{self.key}={drawn[self.key]}"


@dataclass(frozen=True)
class Subset:
    """A list of whole numbers from `first` to `last` - 1 for `key`."""

    key: str
    first: int
    last: int

    @property
    def parameters(self) -> dict[str, BaseDistribution]:
        """Return a yes or no for each number."""
        numbers = range(self.first, self.last)
        return {f"{self.key}[{n}]": CategoricalDistribution((False, True)) for n in numbers}

    def override(self, drawn: Drawn) -> str:
        """Write `key=[...]`. Raises `ConfigError` if every number was left out."""
        chosen = [n for n in range(self.first, self.last) if drawn[f"{self.key}[{n}]"]]
        if not chosen:
            raise ConfigError(f"{self.key}=[]: a subset has at least one element")
        return f"{self.key}=[{','.join(map(str, chosen))}]"


@dataclass(frozen=True)
class Space:
    """The arguments of a search.

    Args:
        fixed: those with one value.
        dimensions: those with several.
    """

    fixed: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    @property
    def parameters(self) -> dict[str, BaseDistribution]:
        """All that Optuna draws."""
        return {k: v for dimension in self.dimensions for k, v in dimension.parameters.items()}

    def overrides(self, drawn: Drawn) -> list[str]:
        """Write what was drawn. Raises `ConfigError` if it is no combination."""
        return [dimension.override(drawn) for dimension in self.dimensions]


def in_words(distribution: BaseDistribution) -> str:
    """Return what a parameter is drawn from."""
    if isinstance(distribution, CategoricalDistribution):
        if set(distribution.choices) == {False, True}:
            return "yes or no"
        return f"one of {', '.join(map(str, distribution.choices))}"
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    kind = "a whole number" if isinstance(distribution, IntDistribution) else "a number"
    step = distribution.step
    every = f", every {step}" if step not in (None, 1) else ""
    scale = ", on a logarithmic scale" if distribution.log else ""
    return f"{kind} from {distribution.low} to {distribution.high}{every}{scale}"


def read_space(arguments: Sequence[str]) -> Space:
    """Part the arguments of a search; of two of one name the later one counts.

    Raises `ConfigError` for one that cannot be read, or if none has several values.
    """
    found: dict[str, str | Dimension] = {}
    for argument in arguments:
        name, entry = _read(argument)
        found.pop(name, None)
        found[name] = entry
    space = Space(
        tuple(entry for entry in found.values() if isinstance(entry, str)),
        tuple(entry for entry in found.values() if not isinstance(entry, str)),
    )
    if not space.dimensions:
        raise ConfigError(
            "a search of 0 dimensions: give an argument several values, as in memory.topk=4,8,16 "
            "'injection_layer=range(1,22)' 'memory.injection.layers=subset(0,4)'"
        )
    return space


def is_subset(argument: str) -> bool:
    """Whether an argument is in our own syntax, which Hydra cannot read."""
    return re.match(r"[^=]+=\s*subset\(", argument) is not None


def _read(argument: str) -> tuple[str, str | Dimension]:
    if is_subset(argument):
        parse([re.sub(r"subset\(.*", "0", argument, flags=re.DOTALL)])
        subset = _subset(argument)
        return subset.key.lstrip("+"), subset
    ((name, override),) = parse([argument]).items()
    if not override.is_sweep_override():
        return name, argument
    try:
        return name, Value(override.get_key_element(), _distribution(override))
    except ValueError as error:
        raise ConfigError(f"{argument}: {error}") from None


def _subset(argument: str) -> Subset:
    number = r"\s*(\d{1,18})\s*"
    found = re.fullmatch(rf"([^=]+)=\s*subset\({number},{number}\)\s*", argument, re.ASCII)
    if found is None or int(found[2]) >= int(found[3]):
        raise ConfigError(f"{argument}: write subset(FIRST,LAST); subset(0,4) is of 0, 1, 2 and 3")
    first, last = int(found[2]), int(found[3])
    if last - first > MOST_CHOICES:
        raise ConfigError(
            f"{argument}: a subset of {last - first:,} numbers, each a yes or no that is drawn; at "
            f"most {MOST_CHOICES:,} are"
        )
    return Subset(found[1], first, last)


def _distribution(override: Override) -> BaseDistribution:
    """Return what Optuna draws from. Raises ValueError for what it cannot draw from."""
    sweep = override.value()
    if not isinstance(sweep, Sweep):
        raise ValueError("name the values, as in a,b")
    log = bool(sweep.tags)
    if sweep.tags - {"log"} or (log and isinstance(sweep, ChoiceSweep)):
        raise ValueError("the only tag is log, of an interval() or a range()")
    if isinstance(sweep, RangeSweep):
        count = len_of_range(sweep)
        if not all(isinstance(number, int) for number in (sweep.start, sweep.stop, sweep.step)):
            raise ValueError("range() is of whole numbers; list fractions, or use interval()")
        if not count:
            raise ValueError("no number is in it; the last one is left out")
        first, step = cast(int, sweep.start), int(sweep.step)
        low, high = sorted([first, first + (count - 1) * step])
        return IntDistribution(low, high, log=log, step=abs(step))
    if isinstance(sweep, IntervalSweep):
        start, end = sweep.start, sweep.end
        if start is None or end is None or not -LARGEST <= start < end <= LARGEST:
            raise ValueError(
                f"the first end must be below the second, and both within {LARGEST:g} of 0"
            )
        if isinstance(start, int) or _is_whole(override.input_line or ""):
            return IntDistribution(int(start), int(end) - 1, log=log)
        return FloatDistribution(start, end, log=log)
    if isinstance(sweep, ChoiceSweep) and sweep.shuffle:
        raise ValueError("a search draws in no order; leave shuffle() out")
    # As text, which keeps lists, quotes and casts as they were written.
    return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))


def _is_whole(argument: str) -> bool:
    """Whether an interval's ends are whole numbers; Hydra makes fractions of all of them."""
    ends = re.search(r"interval\(\s*-?\d+\s*,\s*-?\d+\s*\)", argument)
    return ends is not None and "float(" not in argument
