"""Overrides composed through Hydra, unchecked."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from unimem.config.errors import ConfigError, options_readable, report
from unimem.config.explain import OF_COMPOSING, explain, search_path, several_values
from unimem.config.schema import TEXT_SETTINGS
from unimem.config.values import plain
from unimem.interpolation import guarded, require_readable
from unimem.memory.settings import unused_knobs, usual
from unimem.overrides import OverrideError, as_written, parse_lines, shown
from unimem.paths import config_root

logger = logging.getLogger(__name__)


def parse_overrides(lines: Sequence[str]) -> list[Override]:
    """Parse overrides of the command line or of a study.

    Raises `ConfigError` for one that cannot be parsed, with how to write it.
    """
    try:
        return parse_lines(lines, TEXT_SETTINGS)
    except OverrideError as error:
        raise ConfigError(str(error)) from None


def repeated(given: Sequence[Override]) -> list[str]:
    """Return a line for each setting that is given twice: which of its values counts."""
    last = {override.key_or_group: override.input_line for override in given}
    return [
        f"{override.input_line} is passed over: {last[override.key_or_group]} comes after it"
        for override in given
        if override.input_line != last[override.key_or_group]
    ]


def text_as_written(lines: Sequence[str]) -> list[str]:
    """Quote the values of text settings that Hydra would read as numbers or truth values."""
    return as_written(lines, TEXT_SETTINGS)


@options_readable()
def compose_node(config_name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose a primary configuration of `conf/`, unchecked.

    Raises `ConfigError` for a name or an option that does not exist.
    """
    parsed = parse_overrides(overrides)
    if problems := list(_contradictions(parsed)):
        raise ConfigError(report(problems))
    if several := [o.input_line or "" for o in parsed if o.is_sweep_override()]:
        raise ConfigError(several_values(several[0]))
    lines = text_as_written(overrides)
    with guarded(), initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        try:
            node = hydra_compose(config_name, [*lines, *search_path()])
            require_readable(node)
        except OF_COMPOSING as error:
            raise ConfigError(explain(error, config_name, overrides)) from None
    return drop_unused(node, overrides)


def drop_unused(node: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Remove the knobs of memory that no chosen option takes, unless the overrides set them.

    A method, profile or experiment sets knobs for the options that it chooses itself. If the
    overrides choose other options, a warning names the knobs that are dropped. Knobs that the
    overrides set stay, and are refused when the settings are checked. The node is changed in place
    and returned.
    """
    if not isinstance(node.get("memory"), DictConfig):
        return node
    try:
        memory = plain(node.memory, resolve=True)
        unused = unused_knobs(memory)
    except (OmegaConfBaseException, ImportError, *OF_COMPOSING):
        return node  # `validate` reports what is wrong
    given = {override.key_or_group for override in parse_overrides(overrides)}
    dropped = {k: v for k, v in unused.items() if v != usual(k) and f"memory.{k}" not in given}
    for key, value in dropped.items():
        say_dropped(f"memory.{key}={value}", str(node.method.name))
    with open_dict(node.memory):
        for key, value in memory.items():
            if key in dropped:
                del node.memory[key]
            elif not isinstance(value, dict):
                node.memory[key] = value  # an interpolation may name a dropped knob
    return node


@cache  # a sweep composes the same choices for every cell
def say_dropped(setting: str, method: str) -> None:
    """Log once that a setting of the method, the profile or the experiment is dropped."""
    logger.warning(
        "%s is not used by the options chosen, and is dropped; it is set by method=%s, the profile "
        "or the experiment",
        setting,
        method,
    )


ONE_OPTION = ("method", "model", "data", "trainer", "evaluation")
"""Groups of which one option is chosen."""

NODES = ("memory", "attention")
"""Nodes of settings without options to choose."""

OF_HYDRA = ("help", "verbose")
"""Settings of `hydra.` that may be set: others would run other code, or write outside `output`."""


def _contradictions(given: Sequence[Override]) -> Iterator[str]:
    """Yield a line for each override that contradicts another, or that cannot be set."""
    # A process that Lightning starts is given our own override of Hydra's search path.
    own = search_path()
    by_key = {o.key_or_group: o for o in given if o.input_line not in own}
    for key, override in by_key.items():
        value = override.value()
        group = (config_root() / "conf" / key).is_dir()
        of_hydra = re.match(r"hydra\b[./]?(\w*)", key)
        if of_hydra and of_hydra[1] not in OF_HYDRA:
            yield (
                f"{shown(override.input_line or '')}: {key} cannot be set here; runs lie under "
                "output=, and options of your own in the folder of --config-dir"
            )
        elif key in ("", *NODES) and not (isinstance(value, dict) or override.is_delete()):
            yield f"{override.input_line}: write {key or 'name'}.NAME=value for one of its settings"
        elif not group or not key or override.is_sweep_override():
            continue
        elif isinstance(value, list) and key in ONE_OPTION:
            yield f"{override.input_line}: give one {key}, as in {key}={_first(value)}"
        elif value is None:
            yield f"{override.input_line}: leave it out, or name an option, as in {key}=NAME"
        elif not (isinstance(value, str) or _are_words(value)):
            yield f"{override.input_line}: an option is a name, as in {key}=NAME"
        elif bad := [name for name in _words(value) if not _is_option(name)]:
            yield (
                f"{override.input_line}: {shown(bad[0])!r} is not the name of an option; options "
                f"of your own lie in {key}/ of the folder of --config-dir"
            )
        elif key == "logger" and isinstance(value, list) and "none" in value and value[1:]:
            yield (
                f"{override.input_line}: none means no logger; leave it out, or write logger=none"
            )
    layer = by_key.get("injection_layer")
    if layer is None or layer.is_delete() or layer.value() is None:
        return
    for key in ("memory.injection", "memory.injection.layers"):
        other = by_key.get(key)
        if other is not None and not other.is_delete():
            value = other.value()
            chosen = value if isinstance(value, list) else [value]
            if key != "memory.injection" or not {*map(str, chosen)} <= {"layers", "input"}:
                yield (
                    f"{layer.input_line} puts memory into one layer, and {other.input_line} into "
                    "others: leave one of them out"
                )


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else cast(list[str], value)


def _is_option(name: str) -> bool:
    """Whether a name can be a file of its own group, not one of another folder."""
    return re.fullmatch(r"\w[\w.+-]*", name) is not None


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(entry, str) for entry in cast(list[Any], value)
    )


def _first(value: Any) -> Any:
    return value[0] if value else "NAME"
