"""What Hydra finds wrong with overrides, in the words of this project."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unimem.config.values import leaves, plain
from unimem.interpolation import refusal
from unimem.memory.registry import DIMENSIONS
from unimem.overrides import quoted, shown
from unimem.paths import config_root, own_config
from unimem.yaml_file import load_yaml


def explain(error: Exception, config_name: str, overrides: Sequence[str]) -> str:
    """Return in a line or two what Hydra found wrong with the overrides."""
    # Imported here: the hints read every yaml file.
    from unimem.hints import unknown_option, unknown_setting

    if refused := refusal(error):
        return str(refused)
    text = str(error)
    unknown = re.match(r"Could not override '([^'@]+)'", text)
    if unknown:
        key = unknown[1]
        others = [o for o in overrides if o.split("=")[0].lstrip("+~") != key]
        known, chosen = _composed_without(config_name, others)
        return unknown_setting(key, known, chosen)
    missing = re.match(r"In '.*': Could not find '(.+)/(.+)'\s+Available options in .*:\n", text)
    if missing:
        options = text[missing.end() :].split("Config search path")[0].split()
        return unknown_option(missing[1], missing[2], options)
    several = re.match(r"Ambiguous value for argument '(.+?)'\n", text)
    if several:
        return several_values(several[1])
    # Hydra's answer to an unknown name in a list of options.
    one_of_several = re.match(r"In '.*': Could not load '(.+)/(.+)'", text)
    if one_of_several:
        group, name = one_of_several.groups()
        return unknown_option(group, name, _options(group))
    if isinstance(error, TypeError):
        return f"{' '.join(overrides)}: an option is a name, as memory.reading=similarity ({text})"
    if not isinstance(error, HydraException | OmegaConfBaseException | ValueError):
        given = shown(" ".join(overrides), 1000)
        return f"{given}: cannot be composed ({type(error).__name__}: {text})"
    return text


def several_values(line: str) -> str:
    """Return how to write an override that has several values where one is expected."""
    key, _, value = line.partition("=")
    return (
        f"{line} gives several values: use unimem-sweep, or add -m; for a list write name=[a,b], "
        f"for a value with a comma {shlex.quote(f'{key}={quoted(value)}')}"
    )


def _options(group: str) -> list[str]:
    """Return the options of a group, with those of the user's own folder."""
    roots = [config_root() / "conf", own_config()]
    return sorted({file.stem for root in roots if root for file in (root / group).glob("*.yaml")})


def _composed_without(
    config_name: str, overrides: list[str]
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the known settings and the chosen options, composed without the wrong overrides."""
    while True:
        try:
            node = hydra_compose(config_name, [*overrides, *search_path()])
            break
        except OF_COMPOSING as error:
            unknown = re.match(r"Could not override '([^'@]+)'", str(error))
            left = [o for o in overrides if unknown and o.split("=")[0].lstrip("+~") != unknown[1]]
            if not left or len(left) == len(overrides):
                return [], {}
            overrides = left
    values = plain(node, resolve=False)
    memory = values.get("memory", {})
    chosen = {f"memory.{d}": [*memory[d]] for d in DIMENSIONS if isinstance(memory.get(d), dict)}
    if isinstance(data := values.get("data"), dict):
        chosen["data"] = [str(cast(dict[str, Any], data).get("kind"))]
    nested = tuple(f"{dimension}." for dimension in chosen)
    return [name for name in leaves(values) if not name.startswith(nested)], chosen


OF_COMPOSING = (
    HydraException,
    OmegaConfBaseException,
    YAMLError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    AssertionError,
    RecursionError,
)
"""What Hydra and OmegaConf raise for overrides and files that they cannot compose."""


def search_path() -> list[str]:
    """Return the override that makes Hydra look into the user's own folder too."""
    own = own_config()
    if own is None:
        return []
    Plugins.instance().register(OwnFolder)
    return [f"hydra.searchpath=[{quoted(f'{OwnFolder.scheme()}://{own}')}]"]


class OwnFolder(FileConfigSource):
    """The user's own folder: Hydra reads its files after their size and nesting were checked."""

    @staticmethod
    def scheme() -> str:
        """Return the name before `://` in Hydra's search path."""
        return "bounded"

    def load_config(self, config_path: str) -> ConfigResult:
        """Load a file. Raises `YamlFileError` if it is not YAML, or beyond the bounds."""
        path = Path(self.path) / config_path
        load_yaml(path if path.suffix == ".yaml" else path.with_name(f"{path.name}.yaml"))
        return super().load_config(config_path)
