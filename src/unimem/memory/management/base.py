"""Management: what survives the budget?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unimem.memory.state import Memory


class Management(ABC):
    """Memory size and overflow handling (UniMem, section 3)."""

    def check(self, segment_length: int) -> None:  # noqa: B027 - most budgets fit any segment
        """Raise ValueError if segments of this length cannot be held."""

    @abstractmethod
    def evict(self, memory: Memory, new: int) -> Memory:
        """Bring `memory` back under its budget; its last `new` slots were written just now."""
