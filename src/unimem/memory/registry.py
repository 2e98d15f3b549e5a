"""Find, load and build options by name.

`memory.<dimension>.<option>` names the one option class in `unimem/memory/<dimension>/<option>.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any, cast, get_type_hints

from pydantic import ValidationError

from unimem.memory.injection.base import Injection
from unimem.memory.management.base import Management
from unimem.memory.option import Option
from unimem.memory.positions.base import Positions
from unimem.memory.reading.base import Reading
from unimem.memory.writing.base import Writing
from unimem.paths import own_config, own_module
from unimem.words import counted

DIMENSIONS = ("management", "writing", "reading", "injection")
BASES: Mapping[str, type[Option]] = {
    "management": Management,
    "writing": Writing,
    "reading": Reading,
    "injection": Injection,
    "positions": Positions,
}
"""The base class of the options of each dimension, and of position schemes."""

Choice = Mapping[str, Any]
"""The chosen options of one dimension: option name -> its fields, or its only field's value."""


class PlanError(ValueError):
    """Options that do not fit; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def option_names(dimension: str) -> list[str]:
    """List the options of a dimension, those of the user's own folder too."""
    files = [*(Path(__file__).parent / dimension).glob("*.py")]
    if own := own_config():
        files += (own / _own_folder(dimension)).glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "base"))


def _own_folder(dimension: str) -> str:
    """Name a dimension's folder in the user's own; a scheme is no group of configurations."""
    return dimension if dimension == "positions" else f"memory.{dimension}"


def option_class(dimension: str, name: str) -> type[Any]:
    """Return the class of an option: the only `@option` of the dimension in its file.

    Raises `PlanError` if the file defines none, several or an incomplete one, or if the yaml beside
    it lacks a knob.
    """
    own = own_module(_own_folder(dimension), name)
    module, base = own or import_module(f"unimem.memory.{dimension}.{name}"), BASES[dimension]
    derived = [
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and member.__module__ == module.__name__
        and issubclass(member, base)
    ]
    found = [member for member in derived if "__pydantic_fields__" in vars(member)]
    file, names = module.__file__, ", ".join(member.__name__ for member in found or derived)
    if derived and not found:
        raise PlanError(
            [
                f"{file}: the class {names} lacks the decorator @option "
                "(from unimem.memory.option import option)"
            ]
        )
    if len(found) != 1:
        raise PlanError(
            [f"{file} must define one subclass of {base.__name__}, and defines {names or 'none'}"]
        )
    if lacking := sorted(getattr(found[0], "__abstractmethods__", ())):
        raise PlanError([f"{file}: the class {names} lacks the method {', '.join(lacking)}"])
    if own is not None and dimension in DIMENSIONS[:3]:
        _require_knobs(Path(str(file)).with_suffix(".yaml"), found[0])
    return found[0]


def _require_knobs(file: Path, declared: type[Any]) -> None:
    """Raise `PlanError` if the yaml of an option lacks a value for one of its fields."""
    text = file.read_text() if file.is_file() else ""
    knobs = {line.partition(":")[0] for line in text.splitlines()}
    lacking = [field.name for field in fields(declared) if field.name not in knobs]
    if lacking:
        raise PlanError([f"{file} lacks a value for {' and '.join(lacking)}, as {lacking[0]}: ..."])


def known_option(dimension: str, name: str) -> bool:
    """Whether there is such an option."""
    return name in option_names(dimension)


def field_types(dimension: str, name: str) -> dict[str, Any]:
    """Return the types of an option's fields, which are the knobs that it declares."""
    declared = option_class(dimension, name)
    hints = get_type_hints(declared, include_extras=True)
    return {field.name: hints[field.name] for field in fields(declared)}


def option_fields(dimension: str, name: str, given: Any) -> dict[str, Any]:
    """Spell out the fields that a configuration gives for an option."""
    if isinstance(given, Mapping):
        return dict(cast(Mapping[str, Any], given))
    declared = fields(option_class(dimension, name))
    if len(declared) != 1:
        names = " ".join(f"memory.{field.name}=..." for field in declared) or "none"
        raise PlanError(
            [f"memory.{dimension}.{name}={given!r} is not a value of it; its settings: {names}"]
        )
    return {declared[0].name: given}


def build(dimension: str, choice: Choice, place: int = 0, count: int | None = None) -> list[Any]:
    """Build the chosen options of a dimension for the injected layer `place` of `count`.

    A budget may be a list with one entry for each injected layer; how many there are is not
    checked while `count` is unknown. Raises `PlanError` with every
    problem at once, under the flat names that a user sets.
    """
    built: list[Any] = []
    problems: list[str] = []
    for name, given in choice.items():
        values = option_fields(dimension, name, given)
        listed = cast(type[Option], option_class(dimension, name)).list_fields
        if dimension != "injection":
            for key, value in values.items():
                if not isinstance(value, list):
                    continue
                entries = cast(list[Any], value)
                if key in listed and not (entries and isinstance(entries[0], list)):
                    continue
                if dimension == "writing" or not entries:
                    problems.append(
                        f"memory.{key}={entries}: give one number"
                        + (", for every layer writes alike" if dimension == "writing" else "")
                    )
                    values[key] = entries[0] if entries else 1
                    continue
                if count is not None and len(entries) != count:
                    problems.append(
                        f"memory.{key}={entries} has {counted(len(entries), 'entry', 'entries')} "
                        f"for {counted(count, 'layer')} with memory; give one number, or one for "
                        "each layer"
                    )
                values[key] = entries[place] if place < len(entries) else entries[0]
        try:
            built.append(option_class(dimension, name)(**values))
        except ValidationError as error:
            for item in error.errors():
                path = _flat_name(dimension, name, [str(part) for part in item["loc"]])
                if item["type"] == "missing":
                    problems.append(
                        f"memory.{dimension}={name} needs {path}, which no option chosen declares; "
                        f"set it with +{path}=..."
                    )
                    continue
                message = item["msg"].removeprefix("Value error, ")
                problems.append(f"{path}: {message} (got {item['input']!r})")
    if problems:
        raise PlanError(problems)
    return built


def _flat_name(dimension: str, name: str, loc: list[str]) -> str:
    return f"memory.{dimension}.{name}" if dimension == "injection" else f"memory.{'.'.join(loc)}"
