"""What the commands share: overrides are checked before Hydra runs anything."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from unimem.config import (
    ConfigError,
    compose_node,
    parse_overrides,
    search_path,
    several_values,
    text_as_written,
)
from unimem.paths import CONFIG_DIR, config_root


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` under Hydra with the arguments of the command line.

    A mistyped override is answered in a line, with exit code 1, before anything else happens.
    Hydra's own flags (`--help`, `--cfg job`, `-m`, `--config-dir`) work as ever.
    """
    take_config_dir()
    sys.argv[1:] = arguments = text_as_written(sys.argv[1:])
    flags = {argument for argument in arguments if argument.startswith("-")}
    multirun = bool(flags & {"-m", "--multirun"})
    if not flags - {"-m", "--multirun"}:
        try:
            _check(config_name, arguments, multirun)
        except ConfigError as error:
            sys.exit(str(error))

    def job(node: DictConfig) -> None:
        try:
            task(node)
        except ConfigError as error:
            if multirun:  # the other jobs go on
                raise
            sys.exit(str(error))

    # A process that Lightning starts has this one's arguments already.
    sys.argv += [line for line in search_path() if line not in sys.argv]
    hydra.main(str(config_root() / "conf"), config_name, version_base="1.3")(job)()


def take_config_dir() -> None:
    """Take `--config-dir FOLDER` out of the command line, for this process and those it starts.

    Exits with a line if there is no such folder.
    """
    for i, argument in enumerate(sys.argv):
        flag, _, folder = argument.partition("=")
        if flag in ("--config-dir", "-cd"):
            end = i + 1 if folder else i + 2
            folder = folder or "".join(sys.argv[i + 1 : end])
            if not Path(folder).is_dir() or not folder:
                sys.exit(f"--config-dir {folder}: there is no such folder")
            os.environ[CONFIG_DIR] = str(Path(folder).resolve())
            del sys.argv[i:end]
            return


def _check(config_name: str, arguments: list[str], multirun: bool) -> None:
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parsed = parse_overrides(overrides)
    several = [o.input_line or "" for o in parsed if o.is_sweep_override()]
    if several and not multirun:
        raise ConfigError(several_values(several[0]))
    compose_node(config_name, [line for line in overrides if line not in several])
