"""memory.reading=random: blocks drawn at random, the same ones for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import PlaceReading

if TYPE_CHECKING:
    from torch import Tensor


@final
@option
class Random(PlaceReading):
    """Random reading, the random part of BigBird (Zaheer 2020, arXiv 2007.14062), made causal.

    The queries of a block of `random_size` tokens see `random_blocks` earlier blocks, drawn without
    replacement from number `random_first` on up to `random_gap` blocks before their own; fewer as
    long as there are fewer. What is drawn is a function of `random_seed`, layer, head and block
    alone: resumed, segmented otherwise or generated, the pattern is the same.
    """

    random_size: Annotated[int, Field(gt=0)]
    random_blocks: Annotated[int, Field(gt=0)]
    random_first: Annotated[int, Field(ge=0)] = 0
    random_gap: Annotated[int, Field(gt=0)] = 1
    random_seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Link to the blocks of smallest hash."""
        block = queries // self.random_size  # [B, 1, T, 1]
        last = int(block.max()) - self.random_gap
        if last < self.random_first:
            return (queries < 0) & (keys < 0)
        candidate = block.new_ones(last - self.random_first + 1).cumsum(0) - 1 + self.random_first
        head = block.new_ones(heads).cumsum(0).sub(1)[:, None, None]
        drawn: Any = self.random_seed
        for part in (layer, head, block, candidate):
            drawn = _mix(drawn + (part + 1) * 2654435761)
        drawn = drawn.masked_fill(candidate > block - self.random_gap, 2**31)
        count = min(self.random_blocks, len(candidate))
        index = drawn.topk(count, -1, largest=False).indices  # [B, heads, T, count]
        chosen = drawn.new_zeros(drawn.shape).scatter(-1, index, 1).bool() & (drawn < 2**31)
        own = (keys // self.random_size - self.random_first).expand(*chosen.shape[:3], -1)
        inside = (own >= 0) & (own < len(candidate))
        return chosen.gather(-1, own.clamp(0, len(candidate) - 1)) & inside


def _mix(x: Any) -> Any:
    """Scramble the lower 31 bits of an integer, or of a tensor of them."""
    x = x % 2**31
    for _ in range(2):
        x = ((x >> 16) ^ x) * 73244475 % 2**31
    return (x >> 16) ^ x
