"""The options that each layer runs with, built from the names and budgets of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import TYPE_CHECKING, Any, cast

from unimem.memory.injection.base import Injection
from unimem.memory.management.base import Management
from unimem.memory.option import Fusion, Local, Option
from unimem.memory.positions.base import Positions
from unimem.memory.reading.base import Reading, StateReading
from unimem.memory.registry import Choice, PlanError, build
from unimem.memory.rules import Chosen
from unimem.memory.writing.base import InputWriting, LayerWriting, Writing
from unimem.words import counted

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory, Segment


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one injected layer does: read, attend, write, evict."""

    layer: int
    reading: Reading
    writings: tuple[LayerWriting, ...]
    management: Management
    positions: Positions
    fusion: Fusion
    local: Local

    @property
    def options(self) -> tuple[Option, ...]:
        """The options that work in this layer."""
        return (*self.reading.parts, *self.writings, self.management, self.positions)

    def annotate(self, tokens: Memory, inserted: Tensor) -> Memory:
        """Return a segment's tokens with the notes that are needed while the segment is read.

        inserted [N] says which tokens writing has inserted.
        """
        return reduce(lambda noted, each: each.annotate(noted, inserted), self.writings, tokens)

    def write(self, state: Memory, segment: Segment) -> Memory:
        """Return the memory after a finished segment: what it leaves is written, then evicted."""
        written = reduce(lambda memory, each: each.write(memory, segment), self.writings, state)
        return self.management.evict(written, len(written) - len(state), segment)

    def most_slots(self, length: int, segment_length: int) -> int:
        """Return how many slots are held at most once `length` tokens of a document are read."""
        whole, rest = divmod(length, segment_length)
        written = sum(
            writing.count(segment_length) * whole + (writing.count(rest) if rest else 0)
            for writing in self.writings
        )
        return self.management.most(written)

    def most_tokens(self, segment_length: int) -> int | None:
        """Tokens of the text that the slots held stand for at most; None if that is all.

        A slot that is written for several tokens stands for them; a landmark takes a slot and
        stands for no token.
        """
        if any(writing.memory_kind != "slots" for writing in self.writings) or not self.writings:
            return None
        slots = sum(writing.count(segment_length) for writing in self.writings)
        many = 10**6 * slots
        held = self.management.most_read(many)
        return None if held >= many else -(-held * segment_length // slots)

    @property
    def reach(self) -> tuple[int, int] | None:
        """How many of the oldest and newest slots are read by place at most; None for all."""
        ordered = len(self.writings) == 1 and self.writings[0].every_token
        if not ordered or self.positions.after_choice or self.reading.crossbatch:
            return None
        reaches = [reading.reach for reading in self.reading.content_free]
        known = [reach for reach in reaches if reach is not None]
        if len(known) < len(reaches):
            return None
        return max([0, *(r[0] for r in known)]), max([0, *(r[1] for r in known)])

    @property
    def needs_reference(self) -> str | None:
        """Why attention must look at the logits of all slots; None if it need not."""
        if self.fusion == "grouped":
            return "memory.fusion=grouped weighs blocks by all their logits"
        if self.fusion == "gated" and self.positions.after_choice:
            return f"memory.fusion=gated parts what {self.positions.label} places together"
        if self.observes:
            (first, *_) = (option for option in self.options if option.observes)
            return f"{first.label} asks how much attention each slot gets"
        if self.positions.rearranges:
            return f"{self.positions.label} turns a key for each query by what that query sees"
        searching = [reading for reading in self.reading.parts if reading.searches]
        if len(searching) > 1:
            return f"{searching[0].label} is chosen twice"
        for reading in searching:
            if reading.search is None:
                return f"{reading.label} chooses by all logits"
            if not self.positions.one_rotation:
                return f"{reading.label} searches under {self.positions.label}"
        return None

    @cached_property  # asked for every layer and segment
    def layout(self) -> str:
        """What decides where slots stand: layers of the same memory stand alike.

        Where attention decides what is kept, each layer has a layout of its own.
        """
        own = f", layer {self.layer}" if self.observes else ""
        return f"{self.management!r}, {self.writings!r}{own}"

    @property
    def is_plain_causal(self) -> bool:
        """Whether a segment that sees no memory is read as by the model itself."""
        return self.local == "causal" and self.fusion != "grouped" and not self.observes

    @property
    def state_reading(self) -> StateReading | None:
        """The reading that answers from states of fixed size, behind a gate."""
        return next((r for r in self.reading.parts if isinstance(r, StateReading)), None)

    @property
    def observes(self) -> frozenset[str]:
        """The notes that slots carry for them."""
        return frozenset(note for option in self.options for note in option.observes)


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """The memory of a whole model."""

    segment_length: int
    bptt_segments: int
    layers: Mapping[int, LayerPlan]
    writings: tuple[Writing, ...]
    offload: bool = False
    """Whether memory waits in the machine's own memory, not in that of the model's device."""
    remarks: tuple[str, ...] = ()
    """What a user should know about the numbers of what was chosen."""

    @property
    def soft(self) -> InputWriting | None:
        """The writing of soft tokens at the input, if it is chosen."""
        return next((w for w in self.writings if isinstance(w, InputWriting)), None)

    @property
    def inserting(self) -> LayerWriting | None:
        """The writing that inserts learned tokens into each segment, if one is chosen."""
        layered = (w for w in self.writings if isinstance(w, LayerWriting))
        return next((writing for writing in layered if writing.num_learned), None)

    @property
    def segment_tokens(self) -> int:
        """Tokens of a segment, those that writing inserts counted."""
        inserted = 0 if self.inserting is None else len(self.inserting.inserts(self.segment_length))
        return self.segment_length + inserted

    @property
    def one_by_one(self) -> bool:
        """Whether a segment needs what the last layer made of the one before."""
        return self.soft is not None or self.needs_surprise

    @property
    def needs_surprise(self) -> bool:
        """Whether a writing wants to know the loss of each token."""
        return any(isinstance(w, LayerWriting) and w.needs_surprise for w in self.writings)

    @property
    def needs_reference(self) -> dict[str, int]:
        """Return why layers have no fast form, and of each reason the first layer."""
        found: dict[str, int] = {}
        for layer, plan in self.layers.items():
            if plan.needs_reference is not None:
                found.setdefault(plan.needs_reference, layer)
        return found

    def refusal(self, backend: str) -> str | None:
        """Return what a named attention backend cannot compute; None if there is nothing."""
        if backend not in ("auto", "reference"):
            for why, layer in self.needs_reference.items():
                return (
                    f"attention.backend={backend} cannot compute layer {layer}: {why}; set "
                    "attention.backend=auto or reference"
                )
        return None

    def weight_shapes(
        self, *, width: int, heads: int, kv_heads: int, head_size: int
    ) -> dict[str, tuple[int, ...]]:
        """Name all that memory adds to the weights of a model, and their shapes.

        `soft_tokens` and `inserted_tokens` [n, E]; `gates.LAYER` [H], before their sigmoid;
        `layers.LAYER.NAME` for what a layer's options declare.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        if self.soft is not None:
            shapes["soft_tokens"] = (self.soft.num_soft_tokens, width)
        if self.inserting is not None:
            shapes["inserted_tokens"] = (self.inserting.num_learned, width)
        for layer, plan in self.layers.items():
            if plan.fusion == "gated":
                shapes[f"gates.{layer}"] = (heads,)
            for option in plan.options:
                own = option.weight_shapes(kv_heads, head_size)
                shapes |= {f"layers.{layer}.{name}": shape for name, shape in own.items()}
        return shapes


def injected_layers(choice: Choice, num_layers: int | None) -> tuple[int, ...]:
    """Return the layers that have memory; raise `PlanError` for one that the model lacks.

    Of a model whose depth is not known yet (None), indices are as they are named, and what is
    named by its depth stands as layer 0.
    """
    chosen: list[Injection] = build("injection", choice)
    layers = sorted({layer for option in chosen for layer in option.layers(num_layers or 1)})
    if num_layers is None:
        return tuple(sorted({max(0, layer) for layer in layers}))
    lacking = [layer for layer in layers if not 0 <= layer < num_layers]
    if lacking:
        given = choice.get("layers", lacking)
        one = isinstance(given, list) and len(cast(list[Any], given)) == 1
        setting = f"injection_layer={given[0]}" if one else f"memory.injection.layers={given}"
        last = num_layers - 1
        raise PlanError(
            [
                f"{setting} but the model has "
                f"{counted(num_layers, 'layer')} (0..{last}); layers count from 0: for example "
                f"injection_layer={last}, "
                f"memory.injection.layers={sorted({last // 2, last})}, or at any depth "
                "memory.injection.layers=upper_half, injection_layer=-1"
            ]
        )
    return tuple(layers)


def _combined(readings: list[Reading]) -> Reading:
    united, *others = readings
    for reading in others:
        united |= reading
    return united


def make_plan(
    *,
    segment_length: int,
    bptt_segments: int,
    positions: tuple[str, Mapping[str, Any]],
    fusion: Fusion,
    local: Local,
    choices: Mapping[str, Choice],
    num_layers: int | None,
    offload: bool = False,
) -> MemoryPlan:
    """Build every layer's options; `positions` are the scheme's name and fields.

    Raises `PlanError`.
    """
    layers = injected_layers(choices["injection"], num_layers)
    count = None if num_layers is None else len(layers)
    problems: dict[str, None] = {}
    remarks: dict[str, None] = {}
    plans: dict[int, LayerPlan] = {}
    writings: list[Writing] = build("writing", choices["writing"])
    layered = [writing for writing in writings if isinstance(writing, LayerWriting)]
    for writing in () if layers else layered:
        if writing.num_learned or writing.needs_surprise:
            problems[f"{writing.label} writes into layers, but no layer has memory"] = None
    for place, layer in enumerate(layers):
        parts: dict[str, list[Any]] = {}
        for dimension, choice in (
            ("management", choices["management"]),
            ("reading", choices["reading"]),
            ("positions", dict([positions])),
        ):
            try:
                parts[dimension] = build(dimension, choice, place, count)
            except PlanError as error:
                problems.update(dict.fromkeys(error.problems))
        if problems:
            continue
        chosen = Chosen(
            segment_length=segment_length,
            segment_tokens=segment_length + sum(len(w.inserts(segment_length)) for w in layered),
            segment_slots=sum(writing.count(segment_length) for writing in layered),
            bptt_segments=bptt_segments,
            management=parts["management"][0],
            writings=tuple(writings),
            readings=tuple(parts["reading"]),
            positions=parts["positions"][0],
            fusion=fusion,
            local=local,
        )
        problems.update(dict.fromkeys(chosen.problems()))
        remarks.update(dict.fromkeys(chosen.remarks()))
        plans[layer] = LayerPlan(
            layer=layer,
            reading=_combined(parts["reading"]),
            writings=tuple(layered),
            management=chosen.management,
            positions=chosen.positions,
            fusion=fusion,
            local=local,
        )
    if problems:
        raise PlanError(list(problems))
    return MemoryPlan(
        segment_length=segment_length,
        bptt_segments=bptt_segments,
        layers=plans,
        writings=tuple(writings),
        offload=offload,
        remarks=tuple(remarks),
    )
