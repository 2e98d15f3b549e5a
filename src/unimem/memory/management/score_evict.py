"""memory.management=score_evict: what got the least attention leaves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from unimem.memory.management.base import Management
from unimem.memory.option import option
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class ScoreEvict(Management):
    """Eviction by attention, after each segment: `size` slots stay, the newest `recent` of them.

    `evict_by=received` keeps, for each key-value head, what has got most attention since it was
    written (H2O's heavy hitters, Zhang 2023, arXiv 2306.14048); `evict_by=last`, one set for all
    heads, what the segment's last query looked at (TOVA, Oren 2024, arXiv 2401.06104). Both papers
    evict after each token: so does this with memory.segment_length=1.
    """

    oldest_first: ClassVar[bool] = False

    size: Annotated[int, Field(gt=0)]
    recent: Annotated[int, Field(ge=0)] = 0
    evict_by: Literal["received", "last"] = "received"

    @property
    def per_head(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Heavy hitters are each head's own."""
        return self.evict_by == "received"

    @property
    def observes(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The attention that decides."""
        return frozenset({self.evict_by})

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse to keep more for being new than are kept at all."""
        if self.recent > self.size:
            yield (
                f"memory.recent={self.recent} of memory.size={self.size} slots are kept for being "
                "new; lower memory.recent"
            )

    def most(self, written: int) -> int:
        """Return `size`, or less if less is written."""
        return min(self.size, written)

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Keep the newest slots and the best of the others."""
        if len(memory) <= self.size:
            return memory
        rank = memory.used.cumsum(2)
        newest = rank > rank[..., -1:] - self.recent
        score = memory.notes[self.evict_by]
        score = score.masked_fill(newest, float("inf")).masked_fill(~memory.used, float("-inf"))
        # of equals the newest, whatever stands beside them in other rows
        order = score.flip(-1).argsort(dim=-1, descending=True, stable=True)
        best = len(memory) - 1 - order[..., : self.size]
        return memory.keep(newest.new_zeros(score.shape).scatter(-1, best, True), self.size)
