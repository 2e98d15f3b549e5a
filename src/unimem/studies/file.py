"""A study file of `sweeps/`, turned into the overrides of `unimem-train`.

    # @package _global_
    study: injection_layer
    defaults:
      - override /model: nano
    trainer: {max_steps: 300}
    vary: {injection_layer: "range(1,22)", seed: "0,1,2"}

`vary` has values in Hydra's sweep syntax; a list of such mappings is the union of their grids.
`base` is a list of overrides: the run whose weights all cells start from. `claim`, `published` and
`report` are for reports. Everything else is fixed, and written as in `conf/experiment`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import yaml
from omegaconf import OmegaConf
from pydantic import Field, ValidationError

from unimem.config import ConfigError
from unimem.paths import config_root
from unimem.settings import Settings, describe

Vary = dict[str, str | int | float | bool | None]


class _Fields(Settings):
    """What a study says beside its overrides."""

    vary: Vary | list[Vary] = {}
    base: Annotated[list[str], Field(min_length=1)] | None = None
    claim: Any = None
    published: Any = None
    report: Any = None


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What a study file says.

    Args:
        fixed: overrides of all cells.
        grids: for each grid its overrides, with several values each.
        base: overrides of the run that cells start from; None if they start from scratch.
        fields: the file's own fields, as they are recorded.
    """

    fixed: tuple[str, ...] = ()
    grids: tuple[tuple[str, ...], ...] = ((),)
    base: tuple[str, ...] | None = None
    fields: dict[str, Any]


def read_study_file(name: str) -> StudyFile:
    """Read `sweeps/NAME.yaml`, or the file itself where `name` ends in .yaml.

    Raises `ConfigError` if there is none, or for a field that is wrong.
    """
    values = _load(name)
    fields = {key: values.pop(key) for key in list(values) if key in _Fields.model_fields}
    try:
        checked = _Fields.model_validate(fields)
    except ValidationError as error:
        problems = [describe(cast(dict[str, Any], item)) for item in error.errors()]
        raise ConfigError("\n".join(f"sweeps={name}: {line}" for line in problems)) from None
    grids = checked.vary if isinstance(checked.vary, list) else [checked.vary]
    return StudyFile(
        fixed=tuple(_overrides(name, values)),
        grids=tuple(
            tuple(f"{key}={'null' if v is None else v}" for key, v in grid.items())
            for grid in grids
        ),
        base=None if checked.base is None else tuple(checked.base),
        fields=fields,
    )


def literal(value: Any) -> str:
    """Write a plain value in the grammar of Hydra's overrides."""
    word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_/][\w./+-]*", value)
    if word and value.lower() not in ("true", "false", "null", "nan", "inf"):
        return value
    return json.dumps(value, ensure_ascii=False)


def _load(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".yaml") else config_root() / "sweeps" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in (config_root() / "sweeps").glob("*.yaml"))
        raise ConfigError(f"sweeps={name} is not an option; choose from {', '.join(known)}")
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"sweeps={name} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"sweeps={name} must hold name: value pairs")
    return cast(dict[str, Any], values)


def _overrides(name: str, values: dict[str, Any]) -> Iterator[str]:
    for entry in values.pop("defaults", []):
        found = re.fullmatch(r"override /([\w.]+)", next(iter(entry), ""))
        if not isinstance(entry, dict) or len(entry) != 1 or found is None:
            raise ConfigError(f"sweeps={name}: defaults: {entry} is not `override /group: option`")
        yield f"{found[1]}={literal(*entry.values())}"
    yield from _leaves(values, "")


def _leaves(values: dict[str, Any], prefix: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            # A preset holds whatever budgets its method names.
            new = "++" if prefix == "preset." else ""
            yield f"{new}{prefix}{key}={literal(value)}"
