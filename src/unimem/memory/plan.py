"""From the names and budgets of a configuration to the options that each layer runs with.

`memory.<dimension>.<option>` names the one option class in `unimem/memory/<dimension>/<option>.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from pydantic import ValidationError

from unimem.memory.injection.base import Injection
from unimem.memory.management.base import Management
from unimem.memory.reading.base import Reading
from unimem.memory.writing.base import InputWriting, LayerWriting, Writing
from unimem.paths import own_config

DIMENSIONS = ("management", "writing", "reading", "injection")

Choice = Mapping[str, Any]
"""The chosen options of one dimension: option name -> its fields, or its only field's value."""

PositionScheme = Literal["zero", "true", "capped"]
Fusion = Literal["joint", "gated"]


class PlanError(ValueError):
    """Options that do not fit; `problems` holds one line each."""

    def __init__(self, problems: Sequence[str]):
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one injected layer does: read, attend, write, evict."""

    reading: Reading
    writings: tuple[LayerWriting, ...]
    management: Management
    positions: PositionScheme
    fusion: Fusion


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of a whole model."""

    segment_length: int
    bptt_segments: int
    layers: Mapping[int, LayerPlan]
    soft: InputWriting | None


def option_names(dimension: str) -> list[str]:
    """List the options of a dimension, those of the user's own folder too."""
    files = [*(Path(__file__).parent / dimension).glob("*.py")]
    if own := own_config():
        files += (own / f"memory.{dimension}").glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "base"))


def option_class(dimension: str, name: str) -> type[Any]:
    """Give the class of an option; it is the only one that its file defines."""
    module = _own_module(dimension, name) or import_module(f"unimem.memory.{dimension}.{name}")
    (found,) = (
        member
        for member in vars(module).values()
        if isinstance(member, type) and member.__module__ == module.__name__
    )
    return found


def _own_module(dimension: str, name: str) -> ModuleType | None:
    """Load an option's file from the user's own folder, once; None if it is not there."""
    own = own_config()
    file = None if own is None else own / f"memory.{dimension}" / f"{name}.py"
    if file is None or not file.is_file():
        return None
    loaded = f"{own}:{dimension}.{name}"
    if loaded not in sys.modules:
        spec = spec_from_file_location(loaded, file)
        assert spec is not None and spec.loader is not None
        module = module_from_spec(spec)
        sys.modules[loaded] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[loaded]
            raise
    return sys.modules[loaded]


def option_fields(dimension: str, name: str, given: Any) -> dict[str, Any]:
    """Spell out the fields that a configuration gives for an option."""
    if isinstance(given, Mapping):
        return dict(cast(Mapping[str, Any], given))
    (only,) = fields(option_class(dimension, name))
    return {only.name: given}


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
        if dimension != "injection":
            for key, value in values.items():
                if not isinstance(value, list):
                    continue
                entries = cast(list[Any], value)
                if count is not None and len(entries) != count:
                    problems.append(
                        f"memory.{key}={entries} has {len(entries)} entries for {count} layers "
                        "with memory; give one number, or one for each layer"
                    )
                values[key] = entries[place] if place < len(entries) else entries[0]
        try:
            built.append(option_class(dimension, name)(**values))
        except ValidationError as error:
            for item in error.errors():
                path = _flat_name(dimension, name, [str(part) for part in item["loc"]])
                problems.append(f"{path}: {item['msg']} (got {item['input']!r})")
    if problems:
        raise PlanError(problems)
    return built


def _flat_name(dimension: str, name: str, loc: list[str]) -> str:
    if name == "single":
        return "injection_layer"
    return f"memory.{dimension}.{name}" if dimension == "injection" else f"memory.{'.'.join(loc)}"


def injected_layers(choice: Choice, num_layers: int | None) -> tuple[int, ...]:
    """Give the layers that have memory; raise `PlanError` for one that the model lacks."""
    chosen: list[Injection] = build("injection", choice)
    layers = sorted({layer for option in chosen for layer in option.layers(num_layers or 1)})
    if num_layers is not None and layers and layers[-1] >= num_layers:
        name = "injection_layer" if "single" in choice else "memory.injection.layers"
        given = layers[0] if "single" in choice else layers
        raise PlanError(
            [
                f"{name}={given} but the model has {num_layers} layers (0..{num_layers - 1}); "
                f"layers count from 0"
            ]
        )
    return tuple(layers)


def _united(readings: list[Reading]) -> Reading:
    united, *others = readings
    for reading in others:
        united |= reading
    return united


def make_plan(
    *,
    segment_length: int,
    bptt_segments: int,
    positions: PositionScheme,
    fusion: Fusion,
    choices: Mapping[str, Choice],
    num_layers: int | None,
) -> MemoryPlan:
    """Build every layer's options. Raises `PlanError`."""
    layers = injected_layers(choices["injection"], num_layers)
    count = None if num_layers is None else len(layers)
    problems: dict[str, None] = {}
    plans: dict[int, LayerPlan] = {}
    writings: list[Writing] = build("writing", choices["writing"])
    for place, layer in enumerate(layers):
        parts: dict[str, list[Any]] = {}
        for dimension in ("management", "reading"):
            try:
                parts[dimension] = build(dimension, choices[dimension], place, count)
            except PlanError as error:
                problems.update(dict.fromkeys(error.problems))
        if problems:
            continue
        management: Management = parts["management"][0]
        try:
            management.check(segment_length)
        except ValueError as error:
            problems[str(error)] = None
        plans[layer] = LayerPlan(
            reading=_united(parts["reading"]),
            writings=tuple(w for w in writings if isinstance(w, LayerWriting)),
            management=management,
            positions=positions,
            fusion=fusion,
        )
    if problems:
        raise PlanError(list(problems))
    soft = next((w for w in writings if isinstance(w, InputWriting)), None)
    return MemoryPlan(
        segment_length=segment_length, bptt_segments=bptt_segments, layers=plans, soft=soft
    )
