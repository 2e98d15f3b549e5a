"""YAML files of others: looked at before anything is built from them.

A few lines of aliases stand for millions of nodes, and a mapping may hold itself. So the events of
a file are counted first; whoever composes it then meets no more than the bounds here.
"""

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

MOST_BYTES = 1_000_000
MOST_NODES = 20_000
"""Values of a file, those that its aliases repeat included."""
MOST_NESTED = 30
"""Mappings and lists inside each other."""


class YamlFileError(ValueError):
    """A YAML file that is not read; the message names the file and says why."""


def load_yaml(path: Path) -> Any:
    """Read a YAML file as plain values; an empty one is an empty mapping.

    Interpolations stay text. A key that is given twice and a tag of Python are errors.

    Raises `YamlFileError` if the file cannot be read, is not YAML, or is beyond the bounds.
    """
    require_bounded(path)
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, ValueError, TypeError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise YamlFileError(f"{path} is not YAML of settings: {_line(error)}") from None


def require_bounded(path: Path) -> None:
    """Raise `YamlFileError` unless a file is YAML within the bounds."""
    if not path.is_file():
        raise YamlFileError(f"{path} is not a file")
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise YamlFileError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(raw) > MOST_BYTES:
        raise YamlFileError(f"{path} is larger than {MOST_BYTES:,} bytes, the most for settings")
    try:
        text = raw.decode("utf-8")
        problem = _unbounded(text)
    except UnicodeDecodeError as error:
        raise YamlFileError(f"{path} is not UTF-8: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlFileError(f"{path} is not YAML: {_line(error)}") from None
    except RecursionError:
        problem = f"it is nested deeper than {MOST_NESTED}"
    if problem:
        raise YamlFileError(f"{path} is not read: {problem}")


def _unbounded(text: str) -> str:
    """Return which bound a document is beyond; nothing if it is within all."""
    sizes: dict[str, int] = {}  # of anchors
    open_nodes: list[tuple[str | None, int]] = []  # anchor, nodes counted before it
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                return f"*{event.anchor} stands within what it names"
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
            if len(open_nodes) > MOST_NESTED:
                return f"it is nested deeper than {MOST_NESTED}"
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - before
        if count > MOST_NODES:
            return f"it holds more than {MOST_NODES:,} values, those that aliases repeat included"
    return ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
