"""memory.positions=none: neither query nor memory key is turned."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.option import option
from unimem.memory.positions.base import Frame, Positions, Rotation

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Unrotated(Positions):
    """Memory is read by content alone (Memorizing Transformers, Wu 2022, arXiv 2203.08913)."""

    orderless: ClassVar[bool] = True

    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Turn nothing."""
        return (Rotation(0, 0),)
