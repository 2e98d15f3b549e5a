"""Slots in blocks, and which of them stand for a block.

Shapes: B rows, H query heads, M slots.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from unimem.memory.state import Memory


def blocks(memory: Memory, size: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Number each row's blocks from its oldest, and say at which place each begins, [B, M] both.

    Blocks are those that the note `block` tells, else groups of `size` places counted from place
    `start`. A new block begins at `start` in either case. Slots of a block stand together; what is
    said of a free slot means nothing.
    """
    places, noted = memory.positions, memory.notes.get("block")
    first = (places - start) // size * size + start if noted is None else noted[:, 0]
    if start:
        first = first.clamp_min(start).where(places >= start, first.clamp_min(0))
    begins = memory.valid.clone()
    begins[:, 1:] &= (first[:, 1:] != first[:, :-1]) | ~memory.valid[:, :-1]
    return (begins.cumsum(1) - 1).clamp_min(0), first


def representatives(
    memory: Memory, block: Tensor, number: int | None, dtype: torch.dtype
) -> Tensor:
    """Return each slot's share in the mean that stands for its block [B, 1 or H, M], in `dtype`.

    A block is represented by its landmarks if there are any, else, for each head, by the `number`
    of its slots that got the most attention of that head from their own segment, or by all.
    """
    represents = memory.valid[:, None]
    if "mark" in memory.notes:
        represents = represents & (memory.notes["mark"] > 0)
    elif number is not None:
        got = memory.notes["received_own_segment"]  # [B, H, M]
        number_of = block.where(memory.valid, -1)[:, None].expand_as(got)
        rank = _rank(got.flatten(0, 1), number_of.flatten(0, 1)).view_as(got)
        represents = represents & (rank < number)
    each = block[:, None].expand_as(represents)
    total = block.new_zeros(*represents.shape[:2], int(block.max()) + 1)
    total = total.scatter_add(2, each, represents.long())
    return represents.to(dtype) / total.gather(2, each).clamp_min(1)


def _rank(score: Tensor, block: Tensor) -> Tensor:
    """Number the slots of each block from its greatest score on [B, M]."""
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, block.gather(1, order).argsort(dim=1, stable=True))
    ordered = block.gather(1, order)
    begins = ordered.new_ones(ordered.shape).bool()
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = ordered.new_ones(ordered.shape).cumsum(1) - 1
    rank = place - place.where(begins, 0).cummax(1).values
    return rank.new_zeros(rank.shape).scatter(1, order, rank)
