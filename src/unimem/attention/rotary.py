"""Rotary embedding of keys that are kept un-rotated.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unimem.memory.option import spread

Table = tuple[Tensor, Tensor]
"""Cosines and sines [B or 1, T, D] from the model's own rotary module."""


class IdentityRotary(nn.Module):
    """Stands in for the model's rotary module, so that queries and keys arrive un-rotated.

    The model's own module is kept as `inner`; it has no weights, so no weight name changes. Its
    frequencies are float32 whatever the weights are cast to: in bfloat16 the angle at place 1000
    is off by radians. Those of a model that was cast before are computed anew.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner
        if any(frequencies.dtype.itemsize < 4 for frequencies in self.inner.buffers()):
            self._compute()

    def _compute(self) -> None:
        """Compute the frequencies from the model's configuration."""
        (device,) = {frequencies.device for frequencies in self.inner.buffers()}
        inner = cast(Any, self.inner)
        self.inner = type(inner)(inner.config).to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the frequencies between devices, and never cast them."""
        before = dict(self.inner.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.inner.named_buffers():
            if before[name].is_meta and not buffer.is_meta:
                self._compute()  # made without values, as by `to_empty`
                break
            if buffer.dtype != before[name].dtype:
                holder, _, own = name.rpartition(".")
                setattr(self.inner.get_submodule(holder), own, before[name].to(buffer.device))
        return self

    def forward(self, x: Tensor, position_ids: Tensor) -> Table:
        """Return the table of no rotation."""
        shape = (1, position_ids.shape[-1], 1)
        return x.new_ones(shape), x.new_zeros(shape)


class Frame(NamedTuple):
    """Where the queries of a segment stand; what position schemes see is said in their base."""

    table: Callable[[Tensor], Table]
    """The model's rotary table for indices [B or 1, T]."""
    index: Tensor
    positions: Tensor
    origin: Tensor
    limit: int
    real: Tensor
    """Which queries are no padding [B, T]."""
    neutral: bool = False
    """Whether turning to index 0 changes nothing; some models scale by the table too."""
    window: int | None = None
    """The layer's own sliding window: a query sees tokens at distance below it; None for all."""

    def too_far(self, places: Tensor) -> Tensor:
        """Return which slots lie beyond the layer's window [B, 1 or G, T, M].

        places [B, 1 or G, M] are the slots' places in their documents.
        """
        distance = self.positions[:, None, :, None] - places[:, :, None, :]
        if self.window is None:
            return torch.zeros_like(distance, dtype=torch.bool)
        return distance >= self.window

    @property
    def gain(self) -> Tensor | float:
        """How many times greater the dot product of two turned vectors is; 1 for most models."""
        if self.neutral:
            return 1.0
        cos, sin = self.table(torch.zeros_like(self.index[:1, :1]))
        return (cos.square() + sin.square()).amax()

    def dot(
        self, query: Tensor, query_index: Tensor | int, keys: Tensor, key_index: Tensor | int
    ) -> Tensor:
        """Turn queries and keys to rotary indices, and multiply: unscaled logits [B, H, T, M]."""
        return dot(self.turn(query, query_index), self.turn(keys, key_index))

    def turn(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Turn x [B, heads, N, D] to one index, or [B or 1, N], or [B, 1 or G or heads, N]."""
        if isinstance(index, int) and index == 0 and self.neutral:
            return x
        if isinstance(index, int):
            index = torch.full_like(self.index[:1, :1], index)
        if index.ndim == 2:
            return rotate(x, self.table(index))
        cos, sin = (t.unflatten(0, index.shape[:2]) for t in self.table(index.flatten(0, 1)))
        return _turned(x, spread(cos, x.shape[1]), spread(sin, x.shape[1]))


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turn x [B, heads, T, D] by a table, to the bit as the LLaMA family does."""
    cos, sin = (t[:, None] for t in table)
    return _turned(x, cos, sin)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], -1) * sin


def dot(query: Tensor, keys: Tensor) -> Tensor:
    """Dot products [B, H, T, M] of query [B, H, T, D] with the keys [B, G, M, D] of its group."""
    B, H, T, D = query.shape
    return (query.reshape(B, keys.shape[1], -1, D) @ keys.mT).view(B, H, T, -1)
