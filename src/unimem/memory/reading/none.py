"""memory.reading=none: memory is not looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class NoReading(Reading):
    """Read nothing from a layer's memory; soft tokens at the input need no reading."""

    def select(self, scores: Tensor, positions: Tensor, memory: Memory, taken: Tensor) -> Selection:
        """Choose no slot."""
        nothing = taken.new_zeros(taken.shape)
        return Selection(nothing, nothing)
