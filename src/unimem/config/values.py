"""A composed configuration as plain values, equal settings written alike."""

from __future__ import annotations

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    TypeAdapter,
    ValidationError,
)

from unimem.config.errors import ConfigError, options_readable, report
from unimem.config.schema import SETTINGS
from unimem.interpolation import guarded, refusal
from unimem.memory.depth import Place, in_order
from unimem.memory.registry import DIMENSIONS, field_types, known_option
from unimem.memory.settings import unused_knobs, usual
from unimem.settings import (
    as_declared,
    describe,
)


@options_readable()
def resolve(node: DictConfig) -> dict[str, Any]:
    """Return a composed configuration as plain values, with interpolations resolved.

    Raises `ConfigError` for a value that is missing or cannot be resolved.
    """
    missing = [k for k, v in leaves(plain(node, resolve=False)).items() if v == "???"]
    if missing:
        raise ConfigError(report([f"{key} has no default; set {key}=..." for key in missing]))
    try:
        with guarded():
            values = plain(node, resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(str(refusal(error) or str(error).partition("\n")[0])) from None
    if gone := [key for key in _NODES_OF_RUNS if not isinstance(_at(values, key), dict)]:
        raise ConfigError(report([f"{key} must stay, with its settings" for key in gone]))
    if "preset" in values:
        raise ConfigError("preset: a method's file sets its budgets under memory:, without preset:")
    _follow(values)
    return canonical(values)


_NODES_OF_RUNS = ("memory", "memory.injection", "data", "model", "method")
"""Mappings that are read before the settings are validated."""


def _at(values: dict[str, Any], key: str) -> Any:
    found: Any = values
    for part in key.split("."):
        found = cast(dict[str, Any], found).get(part) if isinstance(found, dict) else None
    return found


SEGMENT_LENGTH = 512
"""Default number of tokens of a segment, for a corpus that has no default of its own."""


def _follow(values: dict[str, Any]) -> None:
    """Fill in settings that follow others, and remove memory knobs without effect, in place."""
    memory, data, model = values["memory"], values["data"], values["model"]
    if memory.get("segment_length", 0) is None:
        memory["segment_length"] = data.get("segment_length", SEGMENT_LENGTH)
    if data.get("tokenizer", "") is None:
        data["tokenizer"] = model.get("tokenizer", "bpe")
    layers = memory.pop("layers", None)
    if (layer := values.pop("injection_layer", None)) is not None:
        try:
            one = TypeAdapter(Place).validate_python(as_declared(layer, (Place,)))
        except ValidationError as error:
            item = {**error.errors()[0], "loc": ("injection_layer",)}
            raise ConfigError(report([describe(item)])) from None
        at_input = {k: v for k, v in memory["injection"].items() if k == "input"}
        memory["injection"] = {"layers": [one], **at_input}
    elif "layers" in memory["injection"]:
        given = memory["injection"]["layers"]
        memory["injection"]["layers"] = layers if given is None else given
    for key, value in unused_knobs(memory).items():
        if value == usual(key):
            del memory[key]  # it has no effect


def canonical(values: dict[str, Any]) -> dict[str, Any]:
    """Write equal settings alike, so that they are one run: `1e3` and `1000`, `true` and `'true'`.

    Values of a wrong type stay as they are, and are refused when the settings are checked.
    """
    memory = values["memory"]
    # A corpus's own segment length is the default of memory.segment_length, which has taken it.
    data = {key: value for key, value in values["data"].items() if key != "segment_length"}
    if str(memory.get("positions")).lower() == "true":  # a scheme that YAML takes for a truth value
        memory["positions"] = "true"
    knobs = knob_types(memory)
    return {
        key: {k: _of_memory(k, entry, knobs) for k, entry in memory.items()}
        if key == "memory"
        else _of_group(key, value)
        for key, value in (values | {"data": data}).items()
    }


def _of_group(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        given = cast(dict[str, Any], value)
        return {key: _of_group(f"{name}.{key}", entry) for key, entry in given.items()}
    return as_declared(value, SETTINGS.get(name, ()))


def _of_memory(name: str, value: Any, knobs: dict[str, Any]) -> Any:
    if name not in DIMENSIONS or not isinstance(value, dict):
        hints = SETTINGS.get(f"memory.{name}", ()) or ((knobs[name],) if name in knobs else ())
        return as_declared(value, hints)
    found: dict[str, Any] = {}
    for option, given in cast(dict[str, Any], value).items():
        if name == "injection" and option == "layers":
            given = in_order(given if isinstance(given, list) else [given])
        elif isinstance(given, dict):
            fields = cast(dict[str, Any], given)
            given = {
                k: as_declared(v, (knobs[k],) if k in knobs else ()) for k, v in fields.items()
            }
        found[option] = given
    return found


def knob_types(memory: dict[str, Any]) -> dict[str, Any]:
    """Return the types of the knobs that the chosen options and the position scheme declare."""
    chosen = [
        (dimension, str(name))
        for dimension in DIMENSIONS
        if isinstance(memory.get(dimension), dict)
        for name in memory[dimension]
    ]
    chosen.append(("positions", str(memory.get("positions", "zero"))))
    return {
        k: v for option in chosen if known_option(*option) for k, v in field_types(*option).items()
    }


def plain(node: DictConfig, *, resolve: bool) -> dict[str, Any]:
    """Return a composed node as plain values."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one mapping of dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= leaves(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
