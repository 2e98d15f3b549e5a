"""memory.writing=landmark: tokens as they are, and behind each block a token that stands for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.rules import Chosen
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory, Segment


@final
@option
class Landmark(LayerWriting):
    """Landmarks (Landmark Attention, Mohtashami 2023, arXiv 2305.16300).

    Behind every `block_size` text tokens of a segment, and behind the shorter rest, a learned token
    is inserted, which takes a place in the document like any other. Its key in each layer stands
    for its block; its value is never read; what it predicts is what the block's last token would.
    Blocks are read by the grouped softmax: memory.fusion=grouped.
    """

    landmarks: ClassVar[bool] = True
    predicts_next: ClassVar[bool] = True

    block_size: Annotated[int, Field(gt=0)]

    @property
    def num_learned(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All landmarks are copies of one learned token."""
        return 1

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse a softmax in which landmarks are read as text, and heads with other blocks."""
        if chosen.management.per_head:
            yield (
                "memory.writing=landmark marks blocks that all heads share, but "
                "memory.management lets each head keep other tokens; choose another of the two"
            )
        if not chosen.management.oldest_first:
            yield (
                f"{chosen.management.label} may part a block from its landmark, and nobody could "
                "read it; with memory.writing=landmark choose fifo, clear_all or unbounded"
            )
        if len(chosen.writings) > 1:
            yield (
                "memory.writing=landmark leaves the text in memory already, in blocks; leave the "
                "other writings out"
            )
        readings = [reading for reading in chosen.readings if reading.memory_kind == "slots"]
        parting = [reading for reading in readings if not reading.up_to_newest]
        if parting and not any(reading.whole_blocks for reading in readings):
            yield (
                f"{parting[0].label} may show tokens of a block without its landmark, and the "
                "grouped softmax would hide them; add memory.reading=block_similarity, which reads "
                "blocks whole"
            )
        if chosen.fusion != "grouped":
            yield (
                f"memory.fusion={chosen.fusion} would read landmarks as if they were text; "
                "memory.writing=landmark needs memory.fusion=grouped"
            )

    def inserts(self, length: int) -> tuple[tuple[int, int], ...]:
        """Put a landmark behind each block."""
        ends = [*range(self.block_size, length, self.block_size), length]
        return tuple((end, 0) for end in ends)

    def annotate(self, tokens: Memory, inserted: Tensor) -> Memory:
        """Note where each token's block begins, and which tokens are landmarks."""
        begins = inserted.roll(1)
        begins[0] = True
        index = inserted.new_ones(len(inserted)).cumsum(0) - 1
        first = tokens.positions[:, index.where(begins, 0).cummax(0).values]
        mark = inserted.long().expand_as(tokens.positions)
        return tokens.noted(block=first[:, None], mark=mark[:, None])

    def count(self, length: int) -> int:
        """The text and its landmarks."""
        return length + len(self.inserts(length))

    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Leave text and landmarks as they are."""
        return memory.append(segment.tokens)
