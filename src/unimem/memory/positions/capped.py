"""memory.positions=capped: true up to a distance, beyond it all are equally far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.positions.base import Frame, Positions, Rotation
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Capped(Positions):
    """Distances beyond `limit` count as `limit` (LM-Infinite, Han 2023, arXiv 2308.16137; InfLLM).

    The limit is the segment length if none is given.
    """

    one_rotation: ClassVar[bool] = False

    limit: Annotated[int, Field(gt=0)] | None = None

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse a limit that the segment itself would exceed."""
        if self.limit is not None and self.limit < chosen.segment_tokens:
            yield (
                f"memory.limit={self.limit} is less than the {chosen.segment_tokens} tokens of a "
                "segment, inside which distances are true; raise it"
            )

    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Turn each key to its place, and all but the near ones to one distance."""
        limit = frame.limit if self.limit is None else self.limit
        places = memory.places
        distance = frame.positions[:, None, :, None] - places[:, :, None, :]
        near = Rotation(frame.index, places + frame.origin[:, None], distance <= limit)
        return near, Rotation(limit, 0)
