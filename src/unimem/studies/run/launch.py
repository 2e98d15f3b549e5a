"""Where cells run, as the options say."""

from collections.abc import Sequence

from unimem.studies.cells import Cell, SweepOptions
from unimem.studies.run.local import LocalLauncher
from unimem.studies.run.runner import Launcher
from unimem.studies.run.slurm import SlurmLauncher, slurm_executor


def make_launcher(options: SweepOptions, runs: Sequence[Cell]) -> Launcher:
    """Make the launcher of `runs`. Raises `ConfigError` where it cannot launch them."""
    if options.launcher == "slurm":
        return SlurmLauncher(options, runs, slurm_executor(options))
    return LocalLauncher(runs, options.study, options.jobs, options.tags)


def resources(options: SweepOptions, runs: Sequence[Cell]) -> tuple[int, int]:
    """Return how many runs there are at a time, and how many GPUs a machine has."""
    if options.launcher == "slurm":
        return options.jobs or len(runs), int(options.slurm["gpus_per_node"] or 0)
    launcher = LocalLauncher(runs, options.study, options.jobs)
    return launcher.slots, len(launcher.gpus)
