"""Collect all that is wrong with a study into one error."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

from unimem.config import ConfigError

Made = TypeVar("Made")


def make_all(names: Sequence[str], make: Callable[[int], Made]) -> list[Made]:
    """Make the i-th thing for each of the names.

    Raises `ConfigError` with all problems, each once, and the names that have it.
    """
    made: list[Made] = []
    problems: dict[str, list[str]] = defaultdict(list)
    for i, name in enumerate(names):
        try:
            made.append(make(i))
        except ConfigError as error:
            for line in str(error).removeprefix("invalid configuration:\n").splitlines():
                problems[line.strip()].append(name)
    if not problems:
        return made
    lines = [
        line
        if len(having) == len(names)
        else f"{line} ({having[0]}{f' and {len(having) - 1} more' if having[1:] else ''})"
        for line, having in problems.items()
    ]
    raise ConfigError("\n".join(["the sweep does not start:", *(f"  {line}" for line in lines)]))
