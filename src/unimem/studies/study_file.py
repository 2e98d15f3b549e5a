"""A study file of `sweeps/`, turned into the overrides of `unimem-train`.

    # @package _global_
    study: injection_layer
    defaults:
      - override /model: nano
    trainer: {max_steps: 300}
    vary: {injection_layer: "range(1,22)", seed: "0,1,2"}

`vary` has values in Hydra's sweep syntax; a list of such mappings is the union of their grids.
`base` is a list of overrides: the run whose weights cells start from. An entry without a value
(`seed`, `data`) is as in the cell, so that every combination has a base run of its own. Or it names
cells of another study, `{sweeps: table2, where: {method: [rmt, unimix]}}`: there is then a cell for
each of these and each combination.
`study.mode: evaluate` reads with the base's weights instead of training them further.
`profiles` has a section for each scale; that of `profile=NAME`, or the first one, is merged over
the file: mappings key by key, but for `vary` and `base`, which are replaced, as lists are. Cells
and bases then take `conf/profile/NAME.yaml` too, before all else.
`claim`, `published` and `report` (`reference`, and `checks` as in `results/claims/statements.py`)
are for reports. Everything else is fixed, and written as in `conf/experiment`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from pydantic import Discriminator, Field, Tag, ValidationError

from unimem.config import ConfigError
from unimem.hints import unknown_option
from unimem.overrides import Overrides, literal
from unimem.paths import config_root, own_config
from unimem.results.claims.statements import read_report
from unimem.settings import Settings, describe
from unimem.studies.cells import parse
from unimem.yaml_file import YamlFileError, load_yaml

Value = str | int | float | bool | None
Vary = dict[str, Value]


class BaseStudy(Settings):
    """Cells of another study to start from: all whose overrides have these values."""

    sweeps: Annotated[str, Field(min_length=1)]
    where: dict[str, Value | list[Value]] = {}


def _base_kind(given: Any) -> str:
    return "cells" if isinstance(given, dict) else "overrides"


_Base = Annotated[
    Annotated[list[str], Field(min_length=1), Tag("overrides")]
    | Annotated[BaseStudy, Tag("cells")],
    Discriminator(_base_kind),
]


class _Fields(Settings):
    """What a study says beside its overrides and profiles."""

    vary: Vary | list[Vary] = {}
    base: _Base | None = None
    claim: Any = None
    published: Any = None
    report: Any = None


@dataclass(frozen=True, kw_only=True)
class StudyFile:
    """What a study file says.

    Args:
        fixed: overrides of all cells.
        grids: for each grid its overrides, with several values each.
        base: overrides of the run that cells start from, and names of those that are as in the
            cell; or the cells of another study; None if cells start from scratch.
        fields: the file's own fields, as they are recorded.
        profile: the profile chosen.
        profiles: all that the file has, the default first.
    """

    fixed: Overrides = field(default_factory=Overrides)
    grids: tuple[Overrides, ...] = (Overrides(),)
    base: tuple[str, ...] | BaseStudy | None = None
    fields: dict[str, Any]
    profile: str | None = None
    profiles: tuple[str, ...] = ()


def read_study_file(name: str, profile: str | None = None) -> StudyFile:
    """Read `sweeps/NAME.yaml`, or the file itself where `name` ends in .yaml.

    `profile` is used if the file has profiles. Raises `ConfigError` if there is no such file or no
    such profile, or for a field that is wrong.
    """
    values = _load(name)
    sections = _sections(name, values)
    if sections:
        profile = next(iter(sections)) if profile is None else profile
        if profile not in sections:
            raise ConfigError(
                f"profile={profile} is not a profile of sweeps={name}; "
                f"choose from {', '.join(sections)}"
            )
        values = _merged(values, sections[profile])
    fields = {key: values.pop(key) for key in list(values) if key in _Fields.model_fields}
    try:
        checked = _Fields.model_validate(fields)
    except ValidationError as error:
        problems = [describe(_untagged(item)) for item in error.errors()]
        raise ConfigError("\n".join(f"sweeps={name}: {line}" for line in problems)) from None
    try:
        read_report(checked.report)
    except ValueError as error:
        raise ConfigError(f"sweeps={name}: {error}") from None
    if isinstance(checked.base, BaseStudy) and checked.base.sweeps == name:
        raise ConfigError(f"sweeps={name}: base: a study cannot start from its own cells")
    grids = checked.vary if isinstance(checked.vary, list) else [checked.vary]
    return StudyFile(
        fixed=parse([*_overrides(name, values)]),
        grids=tuple(
            parse([f"{key}={'null' if v is None else v}" for key, v in grid.items()])
            for grid in grids
        ),
        base=tuple(checked.base) if isinstance(checked.base, list) else checked.base,
        fields=fields,
        profile=profile if sections else None,
        profiles=tuple(sections),
    )


def _untagged(error: Any) -> dict[str, Any]:
    """Name the field as the file does."""
    return error | {"loc": [x for x in error["loc"] if x not in ("overrides", "cells")]}


def setting_lines(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Write nested plain values as overrides, one for each that is no mapping."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from setting_lines(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={literal(value)}"


def _load(name: str) -> dict[str, Any]:
    path = _find(name)
    try:
        values = load_yaml(path)
    except YamlFileError as error:
        raise ConfigError(f"sweeps={name}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"sweeps={name} must hold name: value pairs")
    for place, text in _texts(values):
        # Somebody else's file could have variables of the environment put in.
        if "${" in text:
            raise ConfigError(
                f"sweeps={name}: {place}: {text}: write the value itself, without ${{"
            )
    return cast(dict[str, Any], values)


def _find(name: str) -> Path:
    """Find a study file: one of the user's own folder, a shipped one, or one of `./sweeps`.

    A name that ends in .yaml is the path itself. Raises `ConfigError` if there is no such file.
    """
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    own = own_config()
    folders = [root / "sweeps" for root in (own, config_root(), Path()) if root is not None]
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    if path.suffix in (".yaml", ".yml"):
        raise ConfigError(f"sweeps={name}: there is no such file (looked for from {Path.cwd()})")
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    found = "./NAME.yaml"
    for suffix in (".yaml", ".yml"):
        if Path(f"{name}{suffix}").is_file():
            found = f"./{name}{suffix}"
    raise ConfigError(
        f"{unknown_option('sweeps', name, known)}; a file of your own is sweeps={found}, or lies "
        "in sweeps/ here or in the folder of --config-dir"
    )


def _texts(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Return all texts in nested values, each with the dotted name of its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield place or str(key), str(key)
            yield from _texts(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, place)
    elif isinstance(value, str):
        yield place, value


def _sections(name: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Take the sections of the profiles out of the file's values."""
    sections = values.pop("profiles", {})
    if not isinstance(sections, dict):
        raise ConfigError(f"sweeps={name}: profiles: must hold a section for each profile")
    sections = {key: {} if given is None else given for key, given in sections.items()}
    for key, given in sections.items():
        if not isinstance(given, dict):
            raise ConfigError(f"sweeps={name}: profiles.{key}: must hold name: value pairs")
        if "profiles" in given:
            raise ConfigError(f"sweeps={name}: profiles.{key}: a profile has no profiles")
    if sections and any("profile" in given for given in (values, *sections.values())):
        raise ConfigError(f"sweeps={name}: profile: is chosen by profile=NAME, else the first one")
    return sections


def _merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge mappings key by key; all else in `over`, and `vary` and `base`, replaces what was."""
    merged = dict(values)
    for key, value in over.items():
        before = merged.get(key)
        if isinstance(before, dict) and isinstance(value, dict) and key not in ("vary", "base"):
            value = _merged(before, value)
        merged[key] = value
    return merged


def _overrides(name: str, values: dict[str, Any]) -> Iterator[str]:
    for entry in values.pop("defaults", []):
        found = re.fullmatch(r"override /([\w.]+)", next(iter(entry), ""))
        if not isinstance(entry, dict) or len(entry) != 1 or found is None:
            raise ConfigError(f"sweeps={name}: defaults: {entry} is not `override /group: option`")
        yield f"{found[1]}={literal(*entry.values())}"
    yield from setting_lines(values)
