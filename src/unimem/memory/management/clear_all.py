"""memory.management=clear_all: an overflow empties the memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.management.base import Management
from unimem.memory.option import option
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class ClearAll(Management):
    """Clear all on overflow (the authors' Longformer preset).

    When a row would hold more than `size` tokens, all it held is dropped and the segment that
    overflowed is stored; the authors' code drops that segment too, which leaves every third
    segment of their preset without memory. Rows overflow independently.
    """

    size: Annotated[int, Field(gt=0)]

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse a budget that cannot hold one segment."""
        if self.size < chosen.segment_slots:
            yield (
                f"memory.size={self.size} is less than the {chosen.segment_slots} slots that a "
                f"segment of memory.segment_length={chosen.segment_length} leaves: clear_all could "
                "not hold one; raise the one or lower the other"
            )

    def most(self, written: int) -> int:
        """Return `size`, or less if less is written."""
        return min(self.size, written)

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Drop the older slots of every row that holds more than `size` tokens."""
        overflow = memory.valid.sum(-1, keepdim=True) > self.size
        older = memory.positions.new_ones(len(memory)).cumsum(0) <= len(memory) - new
        positions = memory.positions.masked_fill(overflow & older, -1)
        return replace(memory, positions=positions).last(self.size)
