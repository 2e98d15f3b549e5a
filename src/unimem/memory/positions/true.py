"""memory.positions=true: memory keys stand where they were in the document."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from unimem.memory.option import option
from unimem.memory.positions.base import Frame, Positions, Rotation

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class TruePositions(Positions):
    """The rotary distance is the distance in the document, as in the full-context model."""

    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Turn each key to its place."""
        return (Rotation(frame.index, memory.places + frame.origin[:, None]),)
