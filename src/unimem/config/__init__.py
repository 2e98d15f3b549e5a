"""From overrides to a validated configuration, without torch: a typo is answered in a second."""

from unimem.config.check import check, compose, unread_by_length, validate
from unimem.config.composition import (
    compose_node,
    drop_unused,
    parse_overrides,
    repeated,
    say_dropped,
    text_as_written,
)
from unimem.config.errors import ConfigError
from unimem.config.explain import OwnFolder, search_path, several_values
from unimem.config.schema import NAME_RULE, SETTINGS, TEXT_SETTINGS, Config, Name, Resume
from unimem.config.values import canonical, knob_types, resolve

__all__ = [
    "NAME_RULE", "SETTINGS", "TEXT_SETTINGS", "Config", "ConfigError", "Name", "OwnFolder",
    "Resume", "canonical", "check", "compose", "compose_node", "drop_unused", "knob_types",
    "parse_overrides", "repeated", "resolve", "say_dropped", "search_path", "several_values",
    "text_as_written", "unread_by_length", "validate",
]  # fmt: skip
