"""Rotary embedding of keys that are kept un-rotated, and the schemes that place memory keys.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unimem.memory.plan import PositionScheme

Table = tuple[Tensor, Tensor]
"""Cosines and sines [B or 1, T, D] from the model's own rotary module."""


class IdentityRotary(nn.Module):
    """Stands in for the model's rotary module, so that queries and keys arrive un-rotated.

    The model's own module is kept as `inner`; it has no weights, so no weight name changes.
    """

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, position_ids: Tensor) -> Table:
        """Give the table of no rotation."""
        shape = (1, position_ids.shape[-1], 1)
        return x.new_ones(shape), x.new_zeros(shape)


class Frame(NamedTuple):
    """Where the queries of a segment stand, in the document and in the rotary embedding.

    Rotary indices restart with each segment: its first token, soft or text, has index 0.
    """

    table: Callable[[Tensor], Table]
    """The model's rotary table for indices [B or 1, T]."""
    index: Tensor
    """Rotary indices of the queries [B or 1, T]."""
    positions: Tensor
    """Places of the queries in their documents [B, T]; soft tokens in front stand at the segment's
    first place, those behind count on."""
    origin: Tensor
    """Rotary index of the document's first token [B, 1], negative once it lies in memory."""
    limit: int
    """The greatest distance of scheme `capped`: the segment length."""


def rotate(x: Tensor, table: Table) -> Tensor:
    """Turn x [B, heads, T, D] by a table, to the bit as the LLaMA family does."""
    cos, sin = (t[:, None] for t in table)
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], -1) * sin


def dot(query: Tensor, keys: Tensor) -> Tensor:
    """Dot products [B, H, T, M] of query [B, H, T, D] with the keys [B, G, M, D] of its group."""
    B, H, T, D = query.shape
    return (query.reshape(B, keys.shape[1], -1, D) @ keys.mT).view(B, H, T, -1)


def memory_scores(
    scheme: PositionScheme, query: Tensor, keys: Tensor, positions: Tensor, frame: Frame
) -> Tensor:
    """Unscaled attention logits [B, H, T, M] of queries on memory keys; both come un-rotated.

    `zero`: every memory key stands at index 0, the authors' pos0 (an order-less bag).
    `true`: keys stand where they were in the document.
    `capped`: true up to `frame.limit`, beyond it every distance counts as `frame.limit`
    (LM-Infinite, Han 2023, arXiv 2308.16137).
    """
    start = torch.zeros_like(frame.index[:1, :1])
    turned = rotate(query, frame.table(frame.index))
    if scheme == "zero":
        return dot(turned, rotate(keys, frame.table(start)))
    true = dot(turned, rotate(keys, frame.table(positions + frame.origin)))
    if scheme == "true":
        return true
    distance = (frame.positions[:, :, None] - positions[:, None, :])[:, None]
    far = dot(rotate(query, frame.table(start + frame.limit)), rotate(keys, frame.table(start)))
    return true.where(distance <= frame.limit, far)
