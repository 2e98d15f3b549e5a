"""memory.management=unbounded: everything stays."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from unimem.memory.management.base import Management
from unimem.memory.option import option

if TYPE_CHECKING:
    from unimem.memory.state import Memory


@final
@option
class Unbounded(Management):
    """Keep the whole document; the state grows with its length."""

    def evict(self, memory: Memory, new: int) -> Memory:
        """Keep every slot."""
        return memory
