"""Launchers: where cells run. Each is a file of `launchers/`, its settings in `conf/launcher/`.

A launcher of one's own is FOLDER/launcher/NAME.py and NAME.yaml in the folder of `--config-dir`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from unimem.paths import own_module
from unimem.studies.cells import Cell, SweepOptions


class Run(Protocol):
    """A cell at work."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while it runs."""
        ...

    def stop(self) -> None:
        """Ask it to save and leave."""
        ...

    def kill(self) -> None:
        """End it now."""
        ...


class Launcher(ABC):
    """Starts cells, `slots` at a time. A launcher's file defines one subclass.

    `options.launcher_settings` has what the launcher's yaml declares under its name.
    """

    def __init__(self, options: SweepOptions, runs: Sequence[Cell]):
        self.options, self.runs = options, runs

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many cells run at a time."""

    @property
    def num_gpus(self) -> int:
        """How many GPUs a machine has for its cells."""
        return 0

    def prepare(self) -> None:  # noqa: B027 (most launchers need nothing)
        """Make ready to start cells. Raises `ConfigError` where this launcher cannot."""

    @abstractmethod
    def start(self, cell: Cell, slot: int) -> Run | None:
        """Start a cell; None if another process has it, or just finished it."""


def make_launcher(options: SweepOptions, runs: Sequence[Cell]) -> Launcher:
    """Make the launcher that the options name."""
    name = options.launcher
    module = own_module("launcher", name) or import_module(f"unimem.studies.run.launchers.{name}")
    (found,) = (
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, Launcher)
        and member.__module__ == module.__name__
    )
    return found(options, runs)
