"""What every option is: a frozen, keyword-only dataclass that checks itself.

Options hold budgets, never state: memory is a value that goes in and comes out. They import no
torch, so that a configuration is checked before anything heavy is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass as plain_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.management.base import Management
    from unimem.memory.positions.base import Positions
    from unimem.memory.reading.base import Reading
    from unimem.memory.writing.base import Writing

option = partial(
    dataclass,
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False),
)

Fusion = Literal["joint", "gated", "grouped"]
Local = Literal["causal", "reading"]


@plain_dataclass(frozen=True, kw_only=True)
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
        yield from self._units()
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

    def _units(self) -> Iterable[str]:
        """Match what is written, kept and read: slots, or the matrix of an associative memory."""
        written = {writing.unit: writing for writing in self.writings if not writing.at_input}
        read = {reading.unit: reading for reading in self.readings}
        for unit, reading in read.items():
            if unit != "nothing" and unit not in written:
                yield (
                    f"{reading.label} reads {UNITS[unit]}, which "
                    f"{_labels(self.writings)} does not write"
                )
        for unit, writing in written.items():
            if unit not in read and "nothing" not in read:
                yield (
                    f"{writing.label} writes {UNITS[unit]}, which {_labels(self.readings)} "
                    "never reads"
                )
        if written and "slots" not in written and self.management.bounded:
            yield (
                f"{self.management.label} bounds slots, but {_labels(self.writings)} writes none; "
                "choose memory.management=unbounded"
            )


UNITS = {"slots": "slots", "matrix": "the matrix of an associative memory"}


def _labels(options: Iterable[Option]) -> str:
    return " with ".join(option.label for option in options)


class Option:
    """An option of a dimension, or a position scheme."""

    list_fields: ClassVar[frozenset[str]] = frozenset()
    """Budgets that are lists by themselves; a list of lists then gives one for each layer."""

    observes: ClassVar[frozenset[str]] = frozenset()
    """Notes that each slot must carry for this option: `received`, all attention that it got from
    text so far, summed over queries and the query heads of its key-value head; `home`, what each
    query head gave it in its own segment, summed over queries; `last`, the mean over all heads of
    what the newest segment's last query gave it."""

    merges: ClassVar[bool] = False
    """Whether what it leaves in memory stands for several tokens, so that none of them can be
    hidden without the others."""

    @property
    def label(self) -> str:
        """The option as it is chosen: `memory.reading=all`."""
        dimension, name = re.split(r"[.:]", type(self).__module__)[-2:]
        return f"memory.{dimension}={name}"

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Return, a sentence each, why this option cannot work beside the others."""
        return ()

    def weight_shapes(self, kv_heads: int, head_size: int) -> Mapping[str, tuple[int, ...]]:
        """Name the weights that this option adds to each injected layer, and their shapes."""
        return {}

    def remarks(self, chosen: Chosen) -> Iterable[str]:
        """Return, a sentence each, what a user should know about this option's numbers."""
        return ()

    def initialise(self, weights: Mapping[str, Tensor]) -> None:
        """Set these weights, in place, to what training starts from; they come as zeros."""


def repeat_kv(x: Tensor, heads: int) -> Tensor:
    """Return of each query head what is said of its key-value head: [B, 1 or heads, ...]."""
    if x.shape[1] in (1, heads) or heads == 1:
        return x
    return x.repeat_interleave(heads // x.shape[1], 1)


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32, or in its own type if that is more precise."""
    import torch

    return x.to(torch.promote_types(x.dtype, torch.float32))


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """Keep autocast from computing in a type of half the bits."""
    import torch

    return torch.autocast(x.device.type, enabled=False)
