"""memory.positions=stingy: the newest blocks keep their places, all older ones share one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.blocks import blocks
from unimem.memory.option import Chosen, option
from unimem.memory.positions.base import Frame, Positions, Turn

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Stingy(Positions):
    """Stingy positions (Landmark Attention, Mohtashami 2023, arXiv 2305.16300, section 3.2).

    Before the segment stand topk_blocks + 1 places of a block each: the newest `topk_blocks` blocks
    of the memory stand in order in the last of them, all older ones in the first.
    """

    topk_blocks: Annotated[int, Field(gt=0)]
    block_size: Annotated[int, Field(gt=0)]

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse heads that hold different tokens: a block is one for all."""
        if chosen.management.per_head:
            yield (
                "memory.positions=stingy places blocks that all heads share, but "
                "memory.management lets each head keep other tokens; choose another of the two"
            )

    def turns(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Turn, ...]:
        """Turn each key to its place in the block, and the block to its place."""
        block, first = blocks(memory, self.block_size)
        width = self.block_size + ("mark" in memory.notes)
        age = block[:, -1:] - block
        slot = (self.topk_blocks - age).clamp_min(0)
        index = (slot * width + memory.positions - first).where(memory.valid, 0)
        return (Turn(frame.index + (self.topk_blocks + 1) * width, index),)
