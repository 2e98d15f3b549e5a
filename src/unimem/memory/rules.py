"""What can be chosen together in one layer, and the sentences that refuse what cannot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unimem.memory.option import Fusion, Local, Option

if TYPE_CHECKING:
    from unimem.memory.management.base import Management
    from unimem.memory.positions.base import Positions
    from unimem.memory.reading.base import Reading
    from unimem.memory.writing.base import Writing


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """All that is chosen for one layer; an option looks at it to say whether it fits."""

    segment_length: int
    segment_tokens: int
    """Tokens of a segment, those that writing inserts counted."""
    segment_slots: int
    """Slots that a whole segment leaves behind."""
    bptt_segments: int
    management: Management
    writings: tuple[Writing, ...]
    readings: tuple[Reading, ...]
    positions: Positions
    fusion: Fusion
    local: Local

    @property
    def _options(self) -> tuple[Option, ...]:
        return (*self.readings, *self.writings, self.management, self.positions)

    def remarks(self) -> Iterable[str]:
        """Return, a sentence each, what a user should know about the numbers."""
        for one in self._options:
            yield from one.remarks(self)

    def problems(self) -> Iterable[str]:
        """Return, a sentence each, what cannot work together."""
        for one in self._options:
            yield from one.problems(self)
        yield from self._kinds()
        readings = "+".join(reading.label for reading in self.readings)
        blind = [reading for reading in self.readings if not reading.by_place]
        if self.local == "reading" and blind:
            yield (
                "memory.local=reading shows a query of its own segment what the reading would, "
                f"but {blind[0].label} does not choose by place; set memory.local=causal"
            )
        if self.local == "reading" and any(w.at_input for w in self.writings):
            yield (
                "memory.local=reading chooses by the places of the text, but soft tokens have "
                "none; set memory.local=causal"
            )
        inserting = [writing for writing in self.writings if writing.num_learned]
        if len(inserting) > 1:
            labels = " and ".join(writing.label for writing in inserting)
            yield f"{labels} both insert tokens into the segment; choose one of them"
        if self.fusion == "grouped" and not any(w.landmarks for w in self.writings):
            yield (
                "memory.fusion=grouped weighs blocks by their landmarks, which only "
                "memory.writing=landmark writes"
            )
        if self.fusion == "grouped" and any(w.at_input for w in self.writings):
            yield "memory.fusion=grouped has no block for soft tokens at the input; leave them out"
        if self.fusion == "grouped" and self.local == "reading":
            yield (
                "memory.local=reading could hide its own block from a landmark; with "
                "memory.fusion=grouped set memory.local=causal"
            )
        crossed = max(reading.crossbatch for reading in self.readings)
        alone = [reading for reading in self.readings if reading.crossbatch != crossed]
        if crossed and (alone or self.fusion == "grouped"):
            other = alone[0].label if alone else "memory.fusion=grouped"
            yield (
                f"memory.crossbatch={crossed} shows a row the slots of other documents, which "
                f"{other} would take for its own; leave one of them out"
            )
        if crossed and not self.positions.orderless:
            yield (
                f"memory.crossbatch={crossed} reads other documents, whose places mean nothing "
                f"here: {readings} needs memory.positions=zero or none"
            )

    def _kinds(self) -> Iterable[str]:
        """Match what is written, kept and read: slots, or states of fixed size."""
        written = {
            writing.memory_kind: writing for writing in self.writings if not writing.at_input
        }
        read = {reading.memory_kind: reading for reading in self.readings}
        for unit, reading in read.items():
            if unit != "nothing" and unit not in written:
                yield (
                    f"{reading.label} reads {_kind(unit)}, which "
                    f"{_labels(self.writings)} does not write"
                )
        for unit, writing in written.items():
            if unit not in read and "nothing" not in read:
                yield (
                    f"{writing.label} writes {_kind(unit)}, which {_labels(self.readings)} "
                    "never reads"
                )
        answering = [each for kind, each in read.items() if kind not in ("slots", "nothing")]
        if answering and self.fusion != "gated":
            yield (
                f"memory.fusion={self.fusion} has no place for {answering[0].label}, which "
                "answers without a softmax; set memory.fusion=gated"
            )
        if len(answering) > 1:
            yield f"{_labels(answering)} share one gate; choose one of them"
        if written and "slots" not in written and self.management.bounded:
            yield (
                f"{self.management.label} bounds slots, but {_labels(self.writings)} writes none; "
                "choose memory.management=unbounded"
            )


def _kind(name: str) -> str:
    return name if name == "slots" else f"the {name}"


def _labels(options: Iterable[Option]) -> str:
    return " with ".join(option.label for option in options)
