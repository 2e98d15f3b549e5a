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
        block, other = queries // self.random_size, keys // self.random_size - self.random_first
        begin, last = int(block.min()), int(block.max())
        number = last - self.random_gap - self.random_first + 1
        if number < 1:
            return (queries < 0) & (keys < 0)
        head = block.new_ones(heads).cumsum(0) - 1
        own = block.new_ones(last - begin + 1).cumsum(0) - 1 + begin
        drawn = self._drawn(layer, head, own, number)  # [heads, blocks of queries, candidates]
        place, sets = other.clamp(0, number - 1), other.shape[1]
        linked = drawn.new_zeros(len(block), heads, block.shape[2], other.shape[3])
        for row in range(len(block)):  # block by block first: rows of keys are then copied whole
            asked = block[row, 0, :, 0] - begin
            if sets == 1:
                linked[row] = drawn[:, :, place[row, 0, 0]][:, asked]
                continue
            for i in range(heads):
                linked[row, i] = drawn[i][:, place[row, i, 0]][asked]
        return linked & (other >= 0) & (other < number)

    def _drawn(self, layer: int, head: Tensor, block: Tensor, number: int) -> Tensor:
        """Return for each head and block which of the `number` candidates are drawn."""
        candidate = block.new_ones(number).cumsum(0) - 1 + self.random_first
        value: Any = self.random_seed
        for part in (layer, head[:, None, None], block[:, None], candidate):
            value = _mix(value + (part + 1) * 2654435761)
        late = candidate > block[:, None] - self.random_gap
        value = value.masked_fill(late, 2**31)
        best = value.topk(min(self.random_blocks, number), -1, largest=False).indices
        return best.new_zeros(value.shape).scatter(-1, best, 1).bool() & ~late


def _mix(x: Any) -> Any:
    """Scramble the lower 31 bits of an integer, or of a tensor of them."""
    x = x % 2**31
    for _ in range(2):
        x = ((x >> 16) ^ x) * 73244475 % 2**31
    return (x >> 16) ^ x
