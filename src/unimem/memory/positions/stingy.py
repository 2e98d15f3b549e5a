"""memory.positions=stingy: a few places for all blocks, however many there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.blocks import blocks
from unimem.memory.option import option
from unimem.memory.positions.base import Frame, Positions, Rotation
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Stingy(Positions):
    """Stingy positions (Landmark Attention, Mohtashami 2023, arXiv 2305.16300, section 3.2).

    Before the segment stand topk_blocks + 1 places of a block each, counted from 0. For the choice
    of blocks the newest `topk_blocks` of the memory stand in order in the last of them, all older
    ones in place 0. What a query has chosen is then laid out for it anew, as in the released code:
    in order, each block in a place of its own, of which the last belongs to the newest
    `topk_blocks`. With topk_blocks chosen, the one of rank r stands in place r, or in r + 1 if it
    is among the newest. If a query sees more blocks than that, the older ones stand before place 0.
    """

    rearranges: ClassVar[bool] = True
    one_rotation: ClassVar[bool] = False

    topk_blocks: Annotated[int, Field(gt=0)]
    block_size: Annotated[int, Field(gt=0)]
    block_start: Annotated[int, Field(ge=0)] = 0

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse heads that hold different tokens: a block is one for all."""
        if chosen.management.per_head:
            yield (
                "memory.positions=stingy places blocks that all heads share, but "
                "memory.management lets each head keep other tokens; choose another of the two"
            )

    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Turn each key to its place in the block, and the block to its place."""
        block, first = blocks(memory, self.block_size, self.block_start)
        width = self.block_size + ("mark" in memory.notes)
        inside = (memory.positions - first).where(memory.valid, 0)
        queries = frame.index + (self.topk_blocks + 1) * width
        age = block[:, -1:] - block
        if visible is None:
            place = (self.topk_blocks - age).clamp_min(0).where(memory.valid, 0)
            return (Rotation(queries, place * width + inside),)
        place = self._laid_out(block, age, visible)
        lowest = int(place.amin()) if place.numel() else 0
        return tuple(
            Rotation(queries, at * width + inside, place == at)
            for at in range(self.topk_blocks, lowest - 1, -1)
        )

    def _laid_out(self, block: Tensor, age: Tensor, visible: Tensor) -> Tensor:
        """Return the place of the block of each slot for each query [B, 1 or H, T, M]."""
        each = block[:, None, None, :].expand(visible.shape)
        count = int(block.max()) + 1 if block.numel() else 0
        shown = visible.long().new_zeros(*visible.shape[:3], count)
        shown = shown.scatter_add(-1, each, visible.long()) > 0
        newer = shown.flip(-1).cumsum(-1).flip(-1) - shown.long()  # chosen blocks that are newer
        old = (age >= self.topk_blocks)[:, None, None, :]
        return (self.topk_blocks - newer.gather(-1, each) - old.long()).where(
            visible, self.topk_blocks
        )
