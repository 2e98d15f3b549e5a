"""The error of a wrong configuration."""

from __future__ import annotations

from hydra.errors import CompactHydraException


class ConfigError(CompactHydraException, ValueError):
    """A configuration is wrong; the message has one line for each problem."""


def report(lines: list[str]) -> str:
    """Return the problems as an error message, one line each."""
    return "\n".join(["invalid configuration:", *(f"  {line}" for line in lines)])
