"""memory.management=unbounded: everything stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.management.base import Management
from unimem.memory.option import option

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class Unbounded(Management):
    """Keep the whole document; the slots grow with its length, a matrix never does."""

    bounded: ClassVar[bool] = False

    def most(self, written: int) -> int:
        """All of them."""
        return written

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Keep every slot."""
        return memory
