"""memory.management=pinned_fifo: the first tokens stay for good, of the others the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.management.base import Management
from unimem.memory.option import option

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class PinnedFifo(Management):
    """Pinned FIFO (StreamingLLM, Xiao 2023, arXiv 2309.17453; LM-Infinite).

    The document's first `num_pinned` slots never leave (attention sinks); beside them exactly the
    last `size` are kept.
    """

    oldest_first: ClassVar[bool] = False

    size: Annotated[int, Field(gt=0)]
    num_pinned: Annotated[int, Field(gt=0)]

    def most(self, written: int) -> int:
        """Return `size` and the pinned slots."""
        return min(self.num_pinned + self.size, written)

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Keep the first and the newest slots."""
        if len(memory) <= self.size:
            return memory
        rank = memory.used.cumsum(2)
        newest = rank > rank[..., -1:] - self.size
        return memory.keep((rank <= self.num_pinned) | newest, self.num_pinned + self.size)
