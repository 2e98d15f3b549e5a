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
    """Keep the whole document; slots grow with its length, states of fixed size do not."""

    bounded: ClassVar[bool] = False

    def most(self, written: int) -> int:
        """Return all of them."""
        return written

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Keep every slot."""
        return memory
