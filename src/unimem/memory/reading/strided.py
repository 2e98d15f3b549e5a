"""memory.reading=strided: every period-th token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import PlaceReading
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from torch import Tensor


@final
@option
class Strided(PlaceReading):
    """Strided reading, the far part of the Sparse Transformer (Child 2019, arXiv 1904.10509).

    A query sees the slots whose distance is a multiple of `period` (section 4.2, "strided"). With
    `columns` = c it sees instead the last c places of every block of `period` tokens, the same
    for all queries ("fixed"). The near part is memory.reading=position: a window of period - 1, or
    of 0 by blocks of `period`.
    """

    period: Annotated[int, Field(gt=0)]
    columns: Annotated[int, Field(ge=0)] = 0

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse more columns than a block has."""
        if self.columns > self.period:
            yield (
                f"memory.columns={self.columns} of a block of memory.period={self.period} tokens; "
                "lower memory.columns"
            )

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Link by the remainder of the distance, or of the key's place."""
        if self.columns:
            return (keys % self.period >= self.period - self.columns) & (queries == queries)
        return (queries - keys) % self.period == 0
