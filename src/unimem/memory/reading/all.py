"""memory.reading=all: every query sees every slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import PlaceReading

if TYPE_CHECKING:
    from torch import Tensor


@final
@option
class All(PlaceReading):
    """All reading: plain attention over the whole memory, with gradient.

    With `crossbatch` = d a row reads, in training, the memories of d other rows too, which are
    other documents: the contrastive training of the Focused Transformer (Tworkowski 2023, arXiv
    2307.03170). Evaluation never does.
    """

    whole_blocks: ClassVar[bool] = True

    crossbatch: Annotated[int, Field(ge=0)] = 0

    @property
    def gapless(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Everything has no gap."""
        return True

    @property
    def up_to_newest(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Everything includes it."""
        return True

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Link everything."""
        return (queries == queries) & (keys == keys)
