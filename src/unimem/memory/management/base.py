"""Management: what survives the budget?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from unimem.memory.option import Option

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


class Management(Option, ABC):
    """Memory size and overflow handling (UniMem, section 3)."""

    keeps: ClassVar[bool] = True
    """Whether anything is kept at all."""

    bounded: ClassVar[bool] = True
    """Whether slots ever leave."""

    oldest_first: ClassVar[bool] = True
    """Whether slots leave in the order in which they came."""

    per_head: bool = False
    """Whether heads come to hold different tokens."""

    @abstractmethod
    def most(self, written: int) -> int:
        """Return how many slots are held at most once `written` slots have been written."""

    def most_read(self, written: int) -> int:
        """Return how many of the `written` slots the held slots represent at most."""
        return self.most(written)

    @abstractmethod
    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Bring `memory` back under its budget.

        Its last `new` slots were written just now, of `segment`.
        """
