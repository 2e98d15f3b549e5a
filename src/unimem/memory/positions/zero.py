"""memory.positions=zero: an order-less bag at the beginning of the segment."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.option import option
from unimem.memory.positions.base import Frame, Positions, Rotation

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Zero(Positions):
    """Every memory key stands at the segment's first index (the UniMem authors' pos0)."""

    orderless: ClassVar[bool] = True

    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Turn the queries alone."""
        return (Rotation(frame.index, 0),)
