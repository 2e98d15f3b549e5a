"""Reading: which slots may each query see, and does gradient flow into them?

Shapes: B rows, H query heads, T queries, M slots. Masks may have 1 in place of H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


class Selection(NamedTuple):
    """The slots that each query sees: `visible` and, of those, `live`, [B, H, T, M] each.

    Keys and values of slots that are not live are constants to the gradient; the query always
    gets its gradient.
    """

    visible: Tensor
    live: Tensor

    def __or__(self, other: tuple[Tensor, ...]) -> Selection:
        return Selection(self.visible | other[0], self.live | other[1])


class Reading(ABC):
    """Memory reading (UniMem, section 3). Readings unite with `|`; a slot is read once."""

    searches: ClassVar[bool] = False
    """Whether the choice depends on content; such readings choose last, from what is left."""

    @abstractmethod
    def select(self, scores: Tensor, positions: Tensor, memory: Memory, taken: Tensor) -> Selection:
        """Choose slots for each query.

        scores [B, H, T, M] are the attention logits of all slots, positions [B, T] the queries'
        places in their documents, `taken` [B, H, T, M] the slots that are free or already read.
        """

    @property
    def parts(self) -> tuple[Reading, ...]:
        """The readings that this one unites."""
        return (self,)

    def __or__(self, other: Reading) -> Reading:
        return Union(self.parts + other.parts)


@final
class Union(Reading):
    """Several readings as one: each chooses among the slots that those before it left."""

    def __init__(self, parts: Iterable[Reading]):
        self._parts = tuple(sorted(dict.fromkeys(parts), key=lambda part: part.searches))
        assert self._parts

    @property
    def parts(self) -> tuple[Reading, ...]:
        """The distinct readings, content-free ones first."""
        return self._parts

    def select(self, scores: Tensor, positions: Tensor, memory: Memory, taken: Tensor) -> Selection:
        """Choose in turn, content-free readings first."""
        first, *others = self._parts
        chosen = first.select(scores, positions, memory, taken)
        for part in others:
            chosen |= part.select(scores, positions, memory, taken | chosen.visible)
        return chosen
