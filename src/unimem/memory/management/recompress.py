"""memory.management=recompress: what overflows is pooled, and kept a while longer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.management.base import Management
from unimem.memory.option import option
from unimem.memory.pool import Pool, Pooler, kernel_shapes
from unimem.memory.rules import Chosen

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory, Segment


@final
@option
class Recompress(Management):
    """Two tiers (Compressive Transformer, Rae 2019, arXiv 1911.05507).

    Tokens stay as they are while they are among the newest `size`. Aligned groups of `rate` tokens
    that have left entirely become one slot, by `pool`, at the place of the group's last token (so
    up to rate - 1 tokens more than `size` wait for their group). Of those slots the newest
    `compressed_size` are kept; null for all. `pool=conv` learns its kernels from the attention
    reconstruction loss: what the segment's queries, without positions, would read of the old slots
    and of the new ones; with memory.bptt_segments=0 from it alone, as in the paper.
    """

    merges: ClassVar[bool] = True

    oldest_first: ClassVar[bool] = False

    size: Annotated[int, Field(gt=0)]
    compressed_size: Annotated[int, Field(ge=0)] | None = None
    rate: Annotated[int, Field(gt=0)]
    pool: Pool = "mean"

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse to compress what is no longer token by token."""
        for writing in chosen.writings:
            if writing.memory_kind == "slots" and not (writing.at_input or writing.every_token):
                yield (
                    "memory.management=recompress pools neighbouring tokens of the text, which "
                    f"{writing.label} does not leave in memory one by one; choose "
                    "memory.writing=direct"
                )

    def weight_shapes(self, kv_heads: int, head_size: int) -> Mapping[str, tuple[int, ...]]:
        """The kernels of a learned convolution."""
        return kernel_shapes("recompress", self.pool, self.rate, kv_heads, head_size)

    def initialise(self, weights: Mapping[str, Tensor]) -> None:
        """Begin as the mean."""
        Pooler("recompress", self.pool, self.rate, weights).initialise()

    def most(self, written: int) -> int:
        """Return `size`, an incomplete group, and the pooled slots."""
        waiting = min(written, self.size + self.rate - 1)
        pooled = max(written - self.size, 0) // self.rate
        if self.compressed_size is not None:
            pooled = min(pooled, self.compressed_size)
        return waiting + pooled

    def most_read(self, written: int) -> int:
        """Return the tokens kept as they are, and the tokens that were pooled."""
        if self.compressed_size is None:
            return written
        return min(written, self.size + self.rate - 1 + self.rate * self.compressed_size)

    def evict(self, memory: Memory, new: int, segment: Segment) -> Memory:
        """Pool the groups that have left, and drop the oldest pooled slots."""
        if "tier" not in memory.notes:
            memory = memory.noted(tier=memory.places.new_zeros(memory.places.shape))
        compressed = memory.notes["tier"][:, 0] > 0
        positions = memory.positions
        newest = positions.amax(1, keepdim=True)
        group_end = positions // self.rate * self.rate + self.rate - 1
        leaves = memory.valid & ~compressed & (group_end <= newest - self.size)
        if bool(leaves.any()):
            count = int(leaves.sum(1).max())
            old = memory.keep(leaves[:, None], count)
            pooler = Pooler("recompress", self.pool, self.rate, segment.weights)
            pooled = pooler(old)
            segment.losses.extend(pooler.reconstruction(segment.queries, old, segment.real))
            pooled = pooled.noted(tier=(pooled.places >= 0).long())
            older = memory.keep((memory.valid & compressed)[:, None], len(memory))
            rest = memory.keep((memory.valid & ~compressed & ~leaves)[:, None], len(memory))
            memory = older.append(pooled).append(rest)
        tier = memory.notes["tier"] > 0
        kept = memory.used
        if self.compressed_size is not None:
            rank = (tier & kept).cumsum(2)
            kept = kept & (~tier | (rank > rank[..., -1:] - self.compressed_size))
        return memory.keep(kept, int(kept.sum(2).max()))
