"""The error of a wrong configuration."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from hydra.errors import CompactHydraException

from unimem.memory.registry import PlanError


class ConfigError(CompactHydraException, ValueError):
    """A configuration is wrong; the message has one line for each problem."""


@contextmanager
def options_readable() -> Generator[None]:
    """Raise `ConfigError` for an option file that defines no usable option; also a decorator."""
    try:
        yield
    except PlanError as error:
        raise ConfigError(report(list(error.problems))) from None


def report(lines: list[str]) -> str:
    """Return the problems as an error message, one line each."""
    return "\n".join(["invalid configuration:", *(f"  {line}" for line in lines)])
