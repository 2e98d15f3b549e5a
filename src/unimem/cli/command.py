"""What the commands share: overrides are checked before Hydra runs anything."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from unimem import __version__
from unimem.cli import STOPPED, leave, say
from unimem.config import (
    ConfigError,
    compose_node,
    drop_unused,
    parse_overrides,
    repeated,
    search_path,
    several_values,
    text_as_written,
)
from unimem.paths import CONFIG_DIR, config_root, own_config
from unimem.training.exhausted import OUT_OF_MEMORY, OutOfMemoryError
from unimem.training.folder import make_folder


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` under Hydra with the arguments of the command line.

    A mistyped override is answered in a line, with exit code 1, before anything else happens.
    Hydra's own flags (`--help`, `--cfg job`, `-m`, `--config-dir`) work as ever; `--version` and
    `--explain NAME` are ours.
    """
    take_config_dir()
    _answer(sys.argv[1:])
    sys.argv[1:] = arguments = text_as_written(sys.argv[1:])
    flags = {argument for argument in arguments if argument.startswith("-")}
    multirun = bool(flags & {"-m", "--multirun"})
    if not flags - {"-m", "--multirun"}:
        try:
            _check(config_name, arguments, multirun)
        except ConfigError as error:
            leave(error)

    def job(node: DictConfig) -> None:
        try:
            task(drop_unused(node, HydraConfig.get().overrides.task))
        except ConfigError as error:
            if multirun:  # the other jobs go on
                raise
            leave(error)
        except OutOfMemoryError as error:
            if multirun:
                raise
            say(error, file=sys.stderr)
            sys.exit(OUT_OF_MEMORY)

    if flags & {"--help", "-h"} and (own := own_config()):
        sys.argv += ["--config-dir", str(own)]  # Hydra lists the options of no other search path
    # A process that Lightning starts has this one's arguments already.
    sys.argv += [line for line in search_path() if line not in sys.argv]
    try:
        hydra.main(str(config_root() / "conf"), config_name, version_base="1.3")(job)()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _answer(arguments: list[str]) -> None:
    """Answer `--version` and `--explain`, and exit; go on if neither is asked for."""
    if "--version" in arguments:
        say(f"unimem {__version__}")
        sys.exit(0)
    flags = [argument.partition("=") for argument in arguments]
    at = next((i for i, (flag, *_) in enumerate(flags) if flag == "--explain"), None)
    if at is None:
        return
    # Every yaml file is read, which only this answer is worth.
    from unimem.hints import close_settings
    from unimem.reference import explain, find, settings

    names = [name for name in (flags[at][2], *arguments[at + 1 :]) if name]
    if not names:
        width = max(len(setting.name) for setting in settings())
        say("\n".join(f"{s.name:<{width}}  {s.default}" for s in settings()))
    for name in names:
        found = find(name.partition("=")[0])
        if not found:
            close = close_settings(name, [setting.name for setting in settings()])
            meant = f"; did you mean {' or '.join(close)}?" if close else ""
            leave(f"{name} is not a setting{meant}")
        say("\n".join(map(explain, found)))
    sys.exit(0)


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
                leave(f"--config-dir {folder}: there is no such folder")
            os.environ[CONFIG_DIR] = str(Path(folder).resolve())
            del sys.argv[i:end]
            return


def _check(config_name: str, arguments: list[str], multirun: bool) -> None:
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    parsed = parse_overrides(overrides)
    several = [o.input_line or "" for o in parsed if o.is_sweep_override()]
    if several and not multirun:
        raise ConfigError(several_values(several[0]))
    for line in repeated(parsed):
        say(line, file=sys.stderr)
    node = compose_node(config_name, [line for line in overrides if line not in several])
    if multirun and "study" in node:  # Hydra makes the folder itself
        make_folder(Path(str(node.output)), str(node.output))
