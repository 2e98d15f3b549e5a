"""memory.reading=position: slots chosen by where they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Position(Reading):
    """Position reading: a sliding window with a stride, and the oldest slots for everybody.

    A query sees the slots at text distance 1..`window` that are a multiple of `stride`, and the
    `num_global` oldest slots of the memory (after eviction these are no longer the document's
    first tokens; so in the authors' code). The window slides with the query. Inside the segment
    attention stays fully causal. Gradient flows into the window; into global slots, in the window
    or not, only with `grad_global`: the authors gather those without gradient.
    """

    window: Annotated[int, Field(ge=0)]
    stride: Annotated[int, Field(gt=0)] = 1
    num_global: Annotated[int, Field(ge=0)] = 0
    grad_global: bool = True

    def select(self, scores: Tensor, positions: Tensor, memory: Memory, taken: Tensor) -> Selection:
        """Choose by distance and by rank."""
        distance = (positions[:, :, None] - memory.positions[:, None, :])[:, None]
        near = (distance <= self.window) & (distance % self.stride == 0) & ~taken
        rank = memory.valid.cumsum(1)
        oldest = (rank <= self.num_global)[:, None, None, :] & ~taken
        return Selection(near | oldest, near | oldest if self.grad_global else near & ~oldest)
