"""memory.reading=position: slots chosen by where they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import PlaceReading, Selection, View
from unimem.memory.tensors import repeat_kv

if TYPE_CHECKING:
    from torch import Tensor


@final
@option
class Position(PlaceReading):
    """Position reading: a sliding window with a stride, and the oldest slots for everybody.

    A query sees the slots at distance 1..`window` that are a multiple of `stride`, and the
    `num_global` oldest slots of the memory (after eviction these are no longer the document's
    first tokens, unless management pins them; so in the authors' code). The window slides with the
    query, by blocks of `window_block` tokens: distances are counted from block to block. Gradient
    flows into the window; into global slots, in the window or not, only with `grad_global`: the
    authors gather those without gradient.
    """

    window: Annotated[int, Field(ge=0)]
    window_block: Annotated[int, Field(gt=0)] = 1
    stride: Annotated[int, Field(gt=0)] = 1
    num_global: Annotated[int, Field(ge=0)] = 0
    grad_global: bool = True

    @property
    def gapless(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A stride leaves gaps."""
        return self.stride == 1

    @property
    def up_to_newest(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A stride leaves gaps, and global slots are the oldest."""
        return self.stride == 1 and not self.num_global

    @property
    def reach(self) -> tuple[int, int]:
        """Its global slots, and its window counted to the block's end."""
        return self.num_global, self.window + self.window_block - 1

    @property
    def band(self) -> int | None:
        """Its window, if that has no gaps and slides by tokens."""
        return self.window if self.stride == 1 and self.window_block == 1 else None

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Link by distance, and the document's first tokens to all."""
        return self._near(queries, keys) | (keys < self.num_global)

    def select(self, view: View) -> Selection:
        """Choose by distance and by rank."""
        memory = view.memory
        queries, keys = view.queries[:, None, :, None], memory.places[:, :, None, :]
        near = repeat_kv(self._near(queries, keys), view.heads)
        oldest = repeat_kv((memory.used.cumsum(2) <= self.num_global)[:, :, None, :], view.heads)
        return Selection(near | oldest, self.grad_global or not self.num_global or ~oldest)

    def _near(self, queries: Tensor, keys: Tensor) -> Tensor:
        block = self.window_block
        back = queries // block * block - keys // block * block if block > 1 else queries - keys
        near = back <= self.window
        return near & ((queries - keys) % self.stride == 0) if self.stride > 1 else near
