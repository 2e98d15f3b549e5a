"""What the commands share: overrides are checked before Hydra runs anything."""

import logging
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
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
from unimem.interpolation import guarded
from unimem.paths import CONFIG_DIR, config_root, own_config
from unimem.runs.folder import make_folder
from unimem.studies.grid import require_few
from unimem.training.launched import as_given
from unimem.training.out_of_memory import OUT_OF_MEMORY, OutOfMemoryError


def launch(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Run `task` under Hydra with the arguments of the command line.

    A mistyped override is answered in a line, with exit code 1, before anything else happens.
    Hydra's own flags (`--help`, `--cfg job`, `-m`, `--config-dir`) work as ever; `--version` and
    `--explain NAME` are ours.
    """
    take_config_dir()
    sys.argv[1:] = as_given(sys.argv[1:], os.environ)
    _answer(sys.argv[1:])
    sys.argv[1:] = text_as_written(sys.argv[1:])
    given = _flags()
    shows = bool(given.help or given.cfg or given.info)
    if not (given.hydra_help or given.shell_completion):
        try:
            _check(config_name, given.overrides, given.multirun, records=not shows)
        except ConfigError as error:
            leave(error)

    def job(node: DictConfig) -> None:
        try:
            task(drop_unused(node, HydraConfig.get().overrides.task))
        except ConfigError as error:
            if given.multirun:  # the other jobs go on
                raise
            leave(error)
        except OutOfMemoryError as error:
            if given.multirun:
                raise
            say(error, file=sys.stderr)
            sys.exit(OUT_OF_MEMORY)

    # A process that Lightning starts has this one's arguments already.
    own_path = [line for line in search_path() if line not in sys.argv]
    # Hydra takes overrides only before its flags.
    sys.argv[1:] = [*given.overrides, *own_path, *_without(sys.argv[1:], given.overrides)]
    if given.help and (own := own_config()):
        sys.argv += ["--config-dir", str(own)]  # Hydra lists the options of no other search path
    try:
        with guarded():
            hydra.main(str(config_root() / "conf"), config_name, version_base="1.3")(job)()
    except KeyboardInterrupt:
        sys.exit(STOPPED)


REFUSED = {
    "config_path": "options of your own lie in the folder of --config-dir",
    "config_name": "a command has one configuration; choose an experiment=NAME",
    "config_dir": "write --config-dir FOLDER, once and in full",
    "experimental_rerun": "it would run code from a file; continue a run with resume=true",
}
"""Flags of Hydra that would compose something else than what was checked."""


def _flags() -> Namespace:
    """Read the flags as Hydra does; exits with a line for those that cannot be used here."""
    given = get_args_parser().parse_intermixed_args()
    for name, reason in REFUSED.items():
        if getattr(given, name) is not None:
            sys.exit(f"--{name.replace('_', '-')} cannot be used: {reason}")
    named = {
        "--run": given.run,
        "--multirun": given.multirun,
        "--cfg": given.cfg,
        "--info": given.info,
        "--shell-completion": given.shell_completion,
    }
    if len(together := [flag for flag, value in named.items() if value]) > 1:
        sys.exit(f"{' and '.join(together)} cannot be used together")
    if given.resolve and not (given.cfg or given.help):
        sys.exit("--resolve goes with --cfg job")
    if given.shell_completion:
        what = re.fullmatch(r"(install|uninstall|query)=(bash|fish|zsh)", " ".join(given.overrides))
        if what is None or (what[1] == "query" and "COMP_LINE" not in os.environ):
            sys.exit("--shell-completion takes install=bash or uninstall=bash; or fish, or zsh")
    return given


def _without(arguments: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Leave overrides out of the arguments, each as often as it stands there."""
    left = list(arguments)
    for override in overrides:
        left.remove(override)
    return left


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


def study_command(name: str, run: Callable[[Sequence[str]], int]) -> None:
    """Run a command whose arguments are overrides that Hydra itself does not compose.

    `run` takes the arguments and returns the exit status.

    Args:
        name: of the command without `unimem-`, and of its primary configuration.
        run: the command.
    """
    takes = f"unimem-{name} takes name=value arguments; --help shows them"

    def refuse(node: DictConfig) -> None:
        raise ConfigError(takes)

    take_config_dir()
    arguments = ["dry_run=true" if a == "--dry-run" else a for a in sys.argv[1:]]
    if {"-m", "--multirun"} & set(arguments):
        leave(takes)
    if any(argument.startswith("-") for argument in arguments):
        launch(refuse, name)  # --help, --version and other flags that only show something
        return
    try:
        sys.exit(run(arguments))
    except (ValueError, OSError) as error:
        leave(error)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


class OnceHandler(logging.Handler):
    """Prints what the package logs, each message once."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__(logging.INFO)
        self._show, self._shown = show, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message that was not printed yet."""
        message = self.format(record)
        if message not in self._shown:
            self._shown.add(message)
            self._show(message)


def log_once(handler: OnceHandler) -> None:
    """Have the package's messages printed by this handler alone."""
    logger = logging.getLogger("unimem")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)


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


def _check(config_name: str, overrides: list[str], multirun: bool, *, records: bool) -> None:
    parsed = parse_overrides(overrides)
    several = [o.input_line or "" for o in parsed if o.is_sweep_override()]
    if several and not multirun:
        raise ConfigError(several_values(several[0]))
    for line in repeated(parsed):
        say(line, file=sys.stderr)
    node = compose_node(config_name, [line for line in overrides if line not in several])
    require_few([{override.key_or_group: override for override in parsed}])
    if multirun and records and "study" in node:  # Hydra makes the folder itself
        make_folder(Path(str(node.output)), str(node.output))
