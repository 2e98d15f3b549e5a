"""memory.writing=pooling: neighbouring tokens become one slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Pooling(LayerWriting):
    """Pooling (Compressive Transformer, Rae 2019, arXiv 1911.05507): means of `rate` tokens.

    Un-rotated keys and values of consecutive tokens are averaged; the slot stands at the last of
    them. The last group of a segment may be smaller. A rate of 1 is direct writing.
    """

    rate: Annotated[int, Field(gt=0)]

    def write(self, segment: Memory) -> Memory:
        """Average each group over its real tokens."""
        padding = -len(segment) % self.rate
        positions = _pad(segment.positions, padding, -1)
        positions = positions.view(len(positions), -1, self.rate)
        real = (positions >= 0)[:, None, :, :, None]
        count = real.sum(3).clamp_min(1)

        def mean(x: Tensor) -> Tensor:
            groups = _pad(x, padding, 0, dim=2)
            groups = groups.view(*x.shape[:2], -1, self.rate, x.shape[3])
            return groups.where(real, 0).sum(3) / count

        return type(segment)(mean(segment.keys), mean(segment.values), positions.amax(2))


def _pad(x: Tensor, amount: int, value: int, dim: int = 1) -> Tensor:
    """Append `amount` entries of `value` along `dim`."""
    shape = list(x.shape)
    shape[dim] += amount
    padded = x.new_full(shape, value)
    padded.narrow(dim, 0, x.shape[dim]).copy_(x)
    return padded
