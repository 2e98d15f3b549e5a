"""What the commands share: overrides are checked before Hydra runs anything."""

import sys
from collections.abc import Callable
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig

from unimem.config import ConfigError, compose_node
from unimem.paths import config_root


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` under Hydra with the arguments of the command line.

    A mistyped override is answered in a line, with exit code 1, before anything else happens.
    Hydra's own flags (`--help`, `--cfg job`, `-m`, `--config-dir`) work as ever.
    """
    arguments = sys.argv[1:]
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

    hydra.main(str(config_root() / "conf"), config_name, version_base="1.3")(job)()


def _check(config_name: str, arguments: list[str], multirun: bool) -> None:
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise ConfigError(f"{str(error).splitlines()[0]}; write name=value") from None
    several = [o.input_line for o in parsed if o.is_sweep_override()]
    if several and not multirun:
        raise ConfigError(
            f"{several[0]} gives several values: use unimem-sweep, or add -m; "
            "for a list write name=[a,b]"
        )
    compose_node(config_name, [line for line in overrides if line not in several])
