"""The `memory` node of a configuration: four choices, their budgets, and what they leave open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from unimem.memory.option import Fusion, Local
from unimem.memory.plan import MemoryPlan, injected_layers, make_plan
from unimem.memory.registry import (
    DIMENSIONS,
    Choice,
    PlanError,
    known_option,
    option_class,
    option_fields,
    option_names,
)
from unimem.memory.writing.base import InputWriting, LayerWriting


def _yaml_true(value: Any) -> Any:
    """Read the word `true`, which YAML and the command line take for a truth value."""
    return "true" if str(value).lower() == "true" else value


class MemorySettings(BaseModel):
    """The four dimensions of one model's memory.

    Each dimension maps the names of its chosen options to their fields. A field that is not given
    there is the knob of its name (`topk`, `window`, ...), which stands beside the dimensions; so
    are all fields of a position scheme. `positions`, `fusion`, `local` and `bptt_segments` are
    absent when no chosen option uses them. `device` is where memory waits between segments.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")

    segment_length: Annotated[int, Field(gt=0)]
    management: dict[str, Any]
    writing: dict[str, Any]
    reading: dict[str, Any]
    injection: dict[str, Any]
    positions: Annotated[str, BeforeValidator(_yaml_true)] = "zero"
    fusion: Fusion = "joint"
    local: Local = "causal"
    bptt_segments: Annotated[int, Field(ge=0)] = 0
    device: Literal["model", "cpu"] = "model"

    @model_validator(mode="after")
    def _options_fit(self) -> MemorySettings:
        for dimension in DIMENSIONS:
            for name in self.choice(dimension):
                if name not in option_names(dimension):
                    raise PlanError(
                        [
                            f"memory.{dimension}={name} is not an option; "
                            f"choose from {', '.join(option_names(dimension))}"
                        ]
                    )
        if self.positions not in option_names("positions"):
            names = ", ".join(option_names("positions"))
            raise PlanError(
                [f"memory.positions={self.positions} is not a scheme; choose from {names}"]
            )
        problems = [
            f"memory.{key}={value} is not used by {self.label()}, "
            f"memory.positions={self.positions}; leave it out"
            for key, value in self.unused().items()
        ]
        problems += self._combination_problems()
        if problems:
            raise PlanError(problems)
        return self

    def unused(self) -> dict[str, Any]:
        """Return the knobs that are set, and that nothing chosen takes, with their values."""
        found = unused_knobs(self._set())
        return {key: value for key, value in found.items() if value != usual(key)}

    def _set(self) -> dict[str, Any]:
        own = {key: getattr(self, key) for key in self.model_fields_set}
        return own | (self.model_extra or {})

    def choice(self, dimension: str) -> Choice:
        """Return the chosen options of a dimension, each with its fields."""
        given, knobs = getattr(self, dimension), self._set()
        return {name: spelled_out(dimension, name, own, knobs) for name, own in given.items()}

    def label(self, dimension: str | None = None) -> str:
        """Return the choice of one dimension (`position+similarity`), or all four in a line."""
        if dimension is None:
            return ", ".join(f"memory.{d}={self.label(d)}" for d in DIMENSIONS)
        return "+".join(sorted(self.choice(dimension)))

    def flat(self, num_layers: int | None = None) -> dict[str, Any]:
        """Return the four dimensions and their budgets as flat keys, to filter and group runs by.

        Of a model of `num_layers` layers, `memory.layers` are the indices of those with memory.
        """
        flat: dict[str, Any] = {f"memory.{d}": self.label(d) for d in DIMENSIONS}
        for dimension in DIMENSIONS:
            for name, given in self.choice(dimension).items():
                if option_fields(dimension, name, given):
                    flat |= {
                        f"memory.{key}": value
                        for key, value in option_fields(dimension, name, given).items()
                    }
        flat |= {
            f"memory.{key}": getattr(self, key)
            for key in ("segment_length", "positions", "fusion", "local", "bptt_segments")
            if key in self.model_fields_set
        }
        flat |= {f"memory.{key}": value for key, value in self.scheme()[1].items()}
        if num_layers is not None and (layers := self.layers(num_layers)):
            flat["memory.layers"] = list(layers)
        return flat

    def layers(self, num_layers: int | None) -> tuple[int, ...]:
        """Return the indices of the layers with memory. Raises `PlanError` as `injected_layers`."""
        return injected_layers(self.choice("injection"), num_layers)

    def plan(self, num_layers: int | None) -> MemoryPlan:
        """Build the options for a model of `num_layers` layers. Raises `PlanError`.

        Of a model whose depth is not known yet only the layers that are named are planned.
        """
        return make_plan(
            segment_length=self.segment_length,
            bptt_segments=self.bptt_segments,
            positions=self.scheme(),
            fusion=self.fusion,
            local=self.local,
            choices={dimension: self.choice(dimension) for dimension in DIMENSIONS},
            num_layers=num_layers,
            offload=self.device == "cpu",
        )

    def scheme(self) -> tuple[str, dict[str, Any]]:
        """Return the position scheme and its fields, from the knobs of their names."""
        extra = self.model_extra or {}
        names = [field.name for field in fields(option_class("positions", self.positions))]
        return self.positions, {k: extra[k] for k in names if extra.get(k) is not None}

    def _combination_problems(self) -> list[str]:
        """Name every impossible combination."""
        problems: list[str] = []
        for dimension in DIMENSIONS:
            chosen = self.choice(dimension)
            if not chosen:
                problems.append(f"memory.{dimension} has no option; choose one")
            if "none" in chosen and len(chosen) > 1:
                problems.append(
                    f"memory.{dimension}={self.label(dimension)} mixes none with others"
                )
        if len(self.management) > 1:
            problems.append(
                f"memory.management={self.label('management')}: a memory has one management"
            )
        managements = [option_class("management", name) for name in self.management]
        stores = any(management.keeps for management in managements)
        readings = [option_class("reading", name) for name in self.reading]
        reads = any(reading.memory_kind != "nothing" for reading in readings)
        writings = [option_class("writing", name) for name in self.writing]
        writes_layers = any(issubclass(writing, LayerWriting) for writing in writings)
        writes_input = any(issubclass(writing, InputWriting) for writing in writings)
        at_input = any(option_class("injection", name).at_input for name in self.injection)
        at_layers = any(option_class("injection", name).at_layers for name in self.injection)
        if reads and not stores:
            problems.append(
                "memory.management=none keeps nothing, "
                f"but memory.reading={self.label('reading')} reads from it"
            )
        if stores and not reads:
            problems.append(
                f"memory.management={self.label('management')} stores what "
                "memory.reading=none never reads; choose management=none too"
            )
        if stores and reads and not at_layers:
            problems.append(
                f"memory.reading={self.label('reading')} reads the memory of layers, "
                f"but memory.injection={self.label('injection')} gives none to any"
            )
        if at_layers and not (stores or reads):
            problems.append(
                f"memory.injection={self.label('injection')} gives layers a memory, but "
                "memory.management=none and memory.reading=none leave it empty and unread"
            )
        if at_layers and not writes_layers:
            problems.append(
                f"memory.injection={self.label('injection')} gives layers a memory, but "
                f"memory.writing={self.label('writing')} writes nothing into them; add direct"
            )
        if writes_input and not at_input:
            problems.append(
                "memory.writing=model_forward writes soft tokens, which enter by "
                "memory.injection=input; add it"
            )
        if at_input and not writes_input:
            problems.append(
                "memory.injection=input feeds soft tokens, which only "
                "memory.writing=model_forward writes; add it"
            )
        if writes_input and self.bptt_segments == 0:
            problems.append(
                "memory.bptt_segments=0 lets no gradient reach the segment that wrote the soft "
                "tokens, so they would learn nothing; set it to 1 or more"
            )
        return problems


def spelled_out(dimension: str, name: str, given: Any, memory: Mapping[str, Any]) -> Any:
    """Return the fields of a chosen option: those given under its own name, else the knobs.

    An option that does not exist stays as it is.
    """
    if dimension == "injection":
        return memory.get("layers") if name == "layers" and given is None else given
    if not isinstance(given, dict) or not known_option(dimension, name):
        return cast(Any, given)
    own = cast(dict[str, Any], given)
    declared = [field.name for field in fields(option_class(dimension, name))]
    return {key: memory[key] for key in declared if key in memory} | own


def flat_knobs(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Write a recorded node in today's form: each knob once, beside the dimensions.

    Records of earlier versions hold budgets a second time under their options, null for those that
    no option takes, and one layer with memory as `single`.
    """
    found = dict(memory)
    for dimension in DIMENSIONS:
        if dimension != "injection":
            found[dimension] = {name: {} for name in memory[dimension]}
            for fields in memory[dimension].values():
                found |= {k: v for k, v in fields.items() if k not in memory}
        elif "single" in memory[dimension]:
            found[dimension] = {
                "layers" if k == "single" else k: [v] if k == "single" else v
                for k, v in memory[dimension].items()
            }
    unused = unused_knobs(found)
    return {k: v for k, v in found.items() if k not in unused or v is not None}


def unused_knobs(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Return the knobs that no chosen option takes, with their values.

    Args:
        memory: the node, unchecked. Options that do not exist take none.
    """
    chosen = [
        (dimension, str(name))
        for dimension in DIMENSIONS
        if isinstance(memory.get(dimension), Mapping)
        for name in memory[dimension]
    ]
    options = {option: option_class(*option) for option in chosen if known_option(*option)}
    reads = any(
        dimension == "reading" and option.memory_kind != "nothing"
        for (dimension, _), option in options.items()
    )
    soft = any(issubclass(option, InputWriting) for option in options.values())
    taken = {field.name for option in options.values() for field in fields(option)}
    taken |= {"segment_length", "device", *DIMENSIONS}
    if ("injection", "layers") in options:
        taken.add("layers")
    if reads:
        scheme = _yaml_true(memory.get("positions", "zero"))
        taken |= {"positions", "fusion", "local"}
        if known_option("positions", str(scheme)):
            taken |= {field.name for field in fields(option_class("positions", str(scheme)))}
    if reads or soft:
        taken.add("bptt_segments")
    return {key: value for key, value in memory.items() if key not in taken}


def usual(knob: str) -> Any:
    """Return the value of a knob that says nothing: it need not be used."""
    field = MemorySettings.model_fields.get(knob)
    return None if field is None else field.default
