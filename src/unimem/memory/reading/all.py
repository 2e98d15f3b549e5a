"""memory.reading=all: every query sees every slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class All(Reading):
    """All reading: plain attention over the whole memory, with gradient."""

    def select(self, scores: Tensor, positions: Tensor, memory: Memory, taken: Tensor) -> Selection:
        """Choose every slot that is left."""
        return Selection(~taken, ~taken)
