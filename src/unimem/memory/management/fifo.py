"""memory.management=fifo: the newest tokens stay, the oldest leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.management.base import Management
from unimem.memory.option import option

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class Fifo(Management):
    """First in, first out (Transformer-XL, Memorizing Transformer, UniMix).

    Exactly the last `size` tokens of a document are kept, whatever the segment length; the
    authors count whole segments.
    """

    size: Annotated[int, Field(gt=0)]

    def most(self, written: int) -> int:
        """Return `size`, or less if less is written."""
        return min(self.size, written)

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Keep the newest `size` slots."""
        return memory.last(self.size)
