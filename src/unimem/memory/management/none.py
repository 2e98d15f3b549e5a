"""memory.management=none: nothing is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.management.base import Management
from unimem.memory.option import option

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class NoManagement(Management):
    """Keep nothing: every segment is read by itself."""

    keeps: ClassVar[bool] = False

    def most(self, written: int) -> int:
        """Return 0."""
        return 0

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Drop every slot."""
        return memory.last(0)
