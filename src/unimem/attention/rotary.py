"""Rotary embedding of keys that are kept un-rotated.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unimem.memory.tensors import repeat_kv

Table = tuple[Tensor, Tensor]
"""Cosines and sines [B or 1, T, D] from the model's own rotary module."""


class IdentityRotary(nn.Module):
    """Replaces the model's rotary module, so that queries and keys arrive un-rotated.

    The model's own module is kept as `inner`; it has no weights, so no weight name changes. Its
    frequencies stay float32 when the weights are cast: in bfloat16 the angle at position 1000 is
    off by radians. If the model was cast before, they are computed again.
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
                self._compute()  # without values, as after `to_empty`
                break
            if buffer.dtype != before[name].dtype:
                holder, _, own = name.rpartition(".")
                setattr(self.inner.get_submodule(holder), own, before[name].to(buffer.device))
        return self

    def forward(self, x: Tensor, position_ids: Tensor) -> Table:
        """Return the table of the identity rotation."""
        shape = (1, position_ids.shape[-1], 1)
        return x.new_ones(shape), x.new_zeros(shape)


class Frame(NamedTuple):
    """The positions of a segment's queries; `unimem.memory.positions.base.Frame` has the fields."""

    table: Callable[[Tensor], Table]
    """The model's rotary table for indices [B or 1, T]."""
    index: Tensor
    positions: Tensor
    origin: Tensor
    limit: int
    real: Tensor
    """Which queries are not padding [B, T]."""
    rope_unscaled: bool = False
    """Whether rotation to index 0 is the identity; some models also scale by the table."""
    window: int | None = None
    """The layer's own sliding window: a query sees tokens at distance below it; None for all."""

    def too_far(self, places: Tensor) -> Tensor:
        """Return which slots lie outside the layer's window [B, 1 or G, T, M].

        places [B, 1 or G, M] are the positions of the slots in their documents.
        """
        distance = self.positions[:, None, :, None] - places[:, :, None, :]
        if self.window is None:
            return torch.zeros_like(distance, dtype=torch.bool)
        return distance >= self.window

    @property
    def gain(self) -> Tensor | float:
        """The factor by which rotation scales dot products; 1 for most models."""
        if self.rope_unscaled:
            return 1.0
        cos, sin = self.table(torch.zeros_like(self.index[:1, :1]))
        return (cos.square() + sin.square()).amax()

    def qk(
        self, query: Tensor, query_index: Tensor | int, keys: Tensor, key_index: Tensor | int
    ) -> Tensor:
        """Rotate queries and keys to indices; return their unscaled logits [B, H, T, M]."""
        return qk(self.rotate(query, query_index), self.rotate(keys, key_index))

    def rotate(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Rotate x [B, heads, N, D] to one index, [B or 1, N] or [B, 1 or G or heads, N]."""
        if isinstance(index, int) and index == 0 and self.rope_unscaled:
            return x
        if isinstance(index, int):
            index = torch.full_like(self.index[:1, :1], index)
        if index.ndim == 2:
            return apply_rotary(x, self.table(index))
        cos, sin = (t.unflatten(0, index.shape[:2]) for t in self.table(index.flatten(0, 1)))
        return _rotated(x, repeat_kv(cos, x.shape[1]), repeat_kv(sin, x.shape[1]))


def apply_rotary(x: Tensor, table: Table) -> Tensor:
    """Rotate x [B, heads, T, D] by a table, bit-identical to the LLaMA family."""
    cos, sin = (t[:, None] for t in table)
    return _rotated(x, cos, sin)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], -1) * sin


def qk(query: Tensor, keys: Tensor) -> Tensor:
    """Dot products [B, H, T, M] of query [B, H, T, D] with the keys [B, G, M, D] of its group."""
    B, H, T, D = query.shape
    return (query.reshape(B, keys.shape[1], -1, D) @ keys.mT).view(B, H, T, -1)
