"""memory.writing=pooling: neighbouring tokens become one slot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.pool import Pool, Pooler, kernel_shapes
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory, Segment


@final
@option
class Pooling(LayerWriting):
    """Pooling (Compressive Transformer, Rae 2019, arXiv 1911.05507), at once when a segment ends.

    Groups of `rate` consecutive tokens become one slot by `pool`: the mean or the maximum of
    un-rotated keys and of values, or a learned convolution with the stride `rate`, which is trained
    by the attention reconstruction loss too. The slot stands at the last of its tokens. The last
    group of a segment may be smaller. The mean at a rate of 1 is direct writing.
    """

    merges: ClassVar[bool] = True

    rate: Annotated[int, Field(gt=0)]
    pool: Pool = "mean"

    def weight_shapes(self, kv_heads: int, head_size: int) -> Mapping[str, tuple[int, ...]]:
        """The kernels of a learned convolution."""
        return kernel_shapes("pooling", self.pool, self.rate, kv_heads, head_size)

    def initialise(self, weights: Mapping[str, Tensor]) -> None:
        """Begin as the mean."""
        Pooler("pooling", self.pool, self.rate, weights).initialise()

    def count(self, length: int) -> int:
        """One for each group."""
        return -(-length // self.rate)

    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Pool each group over its real tokens."""
        pooler = Pooler("pooling", self.pool, self.rate, segment.weights)
        pooled = pooler(segment.text)
        segment.losses.extend(pooler.reconstruction(segment.queries, segment.text, segment.real))
        return memory.append(pooled)
