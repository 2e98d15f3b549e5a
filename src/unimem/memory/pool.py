"""Pooling: a group of neighbouring slots becomes one.

Shapes: B rows, H query heads, G key-value heads, M slots, N groups, c tokens of a group, D head
size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from unimem.memory.tensors import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory

Pool = Literal["mean", "max", "conv"]


def kernel_shapes(
    name: str, pool: Pool, rate: int, kv_heads: int, head_size: int
) -> Mapping[str, tuple[int, ...]]:
    """Name the kernels [G, c, D, D] of a learned convolution, one for keys and one for values."""
    shape = (kv_heads, rate, head_size, head_size)
    return {f"{name}_keys": shape, f"{name}_values": shape} if pool == "conv" else {}


class Pooler:
    """Pools groups of `rate` slots by mean, maximum or a convolution with weights of its own."""

    def __init__(self, name: str, pool: Pool, rate: int, weights: Mapping[str, Tensor]):
        self.name, self.pool, self.rate, self.weights = name, pool, rate, weights

    def initialise(self) -> None:
        """Set the kernels to those of the mean."""
        for kernel in self.weights.values():
            kernel.zero_()
            kernel.diagonal(dim1=2, dim2=3).fill_(1 / self.rate)

    def __call__(self, memory: Memory) -> Memory:
        """Pool slots 0..c-1, c..2c-1 and so on, each over its used slots; free if it has none.

        The last group may be smaller. A slot stands at the greatest place of its group, and has got
        the attention that the group got. In a convolution a free slot counts as zero.
        """
        padding = -len(memory) % self.rate
        positions = _pad(memory.positions, padding, -1, 1)
        positions = positions.view(len(positions), -1, self.rate)
        real = (positions >= 0)[:, None, :, :, None]

        def pooled(x: Tensor, name: str) -> Tensor:
            groups = _pad(x, padding, 0, 2).view(*x.shape[:2], -1, self.rate, x.shape[3])
            if self.pool == "max":
                greatest = groups.masked_fill(~real, float("-inf")).amax(3)
                return greatest.where(real.any(3), 0)
            groups = groups.where(real, 0)
            if self.pool == "mean":
                mean = groups.sum(3) / real.sum(3).clamp_min(1)
                return mean.to(x.dtype)  # autocast sums in float32
            kernel = self.weights[f"{self.name}_{name}"].to(x.dtype)
            return (groups[..., None, :] @ kernel[None, :, None]).squeeze(-2).sum(3).to(x.dtype)

        keys, values = pooled(memory.keys, "keys"), pooled(memory.values, "values")
        notes = {
            name: _pad(note, padding, 0, 2).view(*note.shape[:2], -1, self.rate).sum(3)
            for name, note in memory.notes.items()
            if note.dtype.is_floating_point
        }
        return type(memory)(keys, values, positions.amax(2), notes)

    def reconstruction(
        self, queries: Tensor, old: Memory, real: Tensor | None = None
    ) -> list[Tensor]:
        """Return the attention reconstruction loss of a convolution (Rae 2019, 3.2), or None.

        The mean squared difference between what queries [B, H, T, D] read of the old slots and of
        those that they become, without positions, over the queries that are `real` [B, 1, T], or
        all; its gradient reaches the kernels alone. There is none where no gradient is wanted.
        """
        import torch

        if self.pool != "conv" or not torch.is_grad_enabled():
            return []
        old = old.detach()
        pooled = self(old)
        queries = queries.detach()
        difference = _read(queries, old) - _read(queries, pooled)
        error = at_least_float32(difference).square().mean((1, 3))  # [B, rows]
        if real is None:
            return [error.mean()]
        weight = real[:, 0].repeat(1, error.shape[1] // real.shape[2])
        return [(error * weight).sum() / weight.sum().clamp_min(1)]


def _read(queries: Tensor, memory: Memory) -> Tensor:
    """Plain attention of the queries on the used slots [B, G, rows, D]; 0 where there are none."""
    rows = queries.reshape(*memory.keys.shape[:2], -1, queries.shape[3])
    logits = at_least_float32(rows @ memory.keys.mT / queries.shape[3] ** 0.5)
    used = memory.used[:, :, None, :]
    weights = logits.masked_fill(~used, float("-inf")).softmax(-1).where(used, 0)
    return weights.to(memory.values.dtype) @ memory.values


def _pad(x: Tensor, amount: int, value: int, dim: int) -> Tensor:
    """Append `amount` entries of `value` along `dim`."""
    if not amount:
        return x
    shape = list(x.shape)
    shape[dim] += amount
    padded = x.new_full(shape, value)
    padded.narrow(dim, 0, x.shape[dim]).copy_(x)
    return padded
