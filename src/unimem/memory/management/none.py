"""memory.management=none: nothing is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from unimem.memory.management.base import Management
from unimem.memory.option import option

if TYPE_CHECKING:
    from unimem.memory.state import Memory


@final
@option
class NoManagement(Management):
    """Keep nothing: every segment is read by itself."""

    def evict(self, memory: Memory, new: int) -> Memory:
        """Drop every slot."""
        return memory.last(0)
