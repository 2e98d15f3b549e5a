"""Slots that are read by position, as sets of keys that a kernel can attend to.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, N of them within reach,
D head size.
"""

from collections.abc import Hashable, MutableMapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from unimem.attention.reference import slots_and_tokens, view
from unimem.attention.rotary import Frame
from unimem.memory.plan import LayerPlan
from unimem.memory.positions.base import Rotation
from unimem.memory.reading.base import Selection
from unimem.memory.state import FREE, Memory

Rows = MutableMapping[Hashable, bool]
"""Whether slots and segment are contiguous tokens, by segment and layout of memory: computing it
synchronises with the GPU, so layers of the same layout share the answer."""


class Keys(NamedTuple):
    """A set of un-rotated keys and values [B, G, N, D], and which queries see them."""

    keys: Tensor
    values: Tensor
    rotations: tuple[Rotation, ...]
    visible: Tensor
    """[B or 1, 1 or H, T, N]."""
    multiplicity: Tensor | None = None
    """How often each key counts in the softmax, of the same shape; None for once."""


def within_reach(memory: Memory, plan: LayerPlan) -> tuple[Memory, int]:
    """Return the slots that readings by position can reach, and how many of them are the newest.

    The oldest slots come first, gathered for each row; a slot that is also among the newest is
    marked free there.
    """
    if plan.reach is None:
        return memory, len(memory)
    oldest, newest = plan.reach
    M = len(memory)
    if oldest + newest >= M:
        return memory, M
    bare = replace(memory, notes={}, recurrent={})
    tail = bare.last(newest)
    if not oldest:
        return tail, newest
    index = first_used(memory) + torch.arange(oldest, device=memory.keys.device)
    places = memory.places.gather(2, index.clamp_max(M - 1)).masked_fill(index >= M, FREE)
    columns = index.clamp_max(M - 1).expand(-1, memory.keys.shape[1], -1)[..., None]
    columns = columns.expand(-1, -1, -1, memory.keys.shape[3])
    head = Memory(memory.keys.gather(2, columns), memory.values.gather(2, columns), places)
    column = torch.arange(M - newest, M, device=memory.keys.device)
    twice = column <= index[..., -1:]
    tail = replace(tail, positions=tail.places.masked_fill(twice, FREE))
    return head.append(tail), newest


def first_used(memory: Memory) -> Tensor:
    """Return the column of the oldest used slot [B, 1 or G, 1]."""
    return memory.used.byte().argmax(-1, keepdim=True)


def by_place(reachable: Memory, plan: LayerPlan, query: Tensor, frame: Frame) -> Selection | None:
    """Return the selection of the readings that do not search; None if there are none."""
    readings = plan.reading.content_free
    if not readings or not len(reachable):
        return None
    candidates = view(reachable, query, plan, frame)
    chosen = readings[0].choose(candidates)
    for reading in readings[1:]:
        chosen |= reading.choose(replace(candidates, taken=candidates.taken | chosen.visible))
    return chosen


def split(reachable: Memory, rotations: tuple[Rotation, ...], chosen: Selection) -> list[Keys]:
    """Return the slots chosen by position; slots without gradient are a set of their own."""
    keys, values, visible = reachable.keys, reachable.values, chosen.visible
    grad_mask, multiplicity = chosen.grad_mask, chosen.multiplicity
    if chosen.gradient is True or not keys.requires_grad:
        return [Keys(keys, values, rotations, visible, multiplicity)]
    if grad_mask.shape[2] == 1:
        alive = _of_groups(grad_mask[:, :, 0], keys.shape[1])[..., None]
        keys, values = (x.where(alive, x.detach()) for x in (keys, values))
        return [Keys(keys, values, rotations, visible, multiplicity)]
    dead = Keys(keys.detach(), values.detach(), rotations, visible & ~grad_mask, multiplicity)
    return [Keys(keys, values, rotations, visible & grad_mask, multiplicity), dead]


def _of_groups(mask: Tensor, groups: int) -> Tensor:
    """Return per key-value head a mask that is equal for its query heads [B, 1 or H, ...]."""
    return mask if mask.shape[1] == 1 else mask[:, :: mask.shape[1] // groups]


def placed(
    memory: Memory, own: Keys, plan: LayerPlan, frame: Frame, chosen: Selection | None
) -> list[Keys]:
    """Return slots and segment as one set, for schemes that place keys after the choice."""
    slots = slots_and_tokens(memory, own.keys, own.values, frame)
    B, _, T, _ = own.keys.shape
    if chosen is None:
        nothing = own.visible.new_zeros(1, 1, T, len(memory))
        chosen = Selection(nothing)
    visible = side_by_side(chosen.visible, own.visible, B)
    gradient, multiplicity = True, None
    if chosen.gradient is not True:
        alive = chosen.grad_mask.expand(*chosen.grad_mask.shape[:2], T, len(memory))
        gradient = side_by_side(alive, torch.ones_like(own.visible), B)
    if chosen.multiplicity is not None or own.multiplicity is not None:
        once = own.keys.new_ones(1, 1, 1, 1)
        left, right = (
            once if own is None else own for own in (chosen.multiplicity, own.multiplicity)
        )
        left = left.expand(*left.shape[:2], T, len(memory))
        multiplicity = side_by_side(left, right.expand(*right.shape[:2], T, T), B)
    rotations = plan.positions.rotations(slots, frame, visible)
    return split(slots, rotations, Selection(visible, gradient, multiplicity))


def band_of(
    plan: LayerPlan, reachable: Memory, tail: int, frame: Frame, rows: Rows, segment: Hashable
) -> int | None:
    """Return the window if the newest slots and the segment are contiguous and seen through it.

    The positions are compared once for all layers of the same layout; `rows` keeps the answer.
    """
    readings, tokens = plan.reading.content_free, frame.positions.shape[1]
    window = readings[0].band if len(readings) == 1 else None
    if window is None or tail == len(reachable) > window or tokens > window + 1:
        return None
    if frame.window is not None and window >= frame.window:
        return None  # the layer's own window is narrower
    if readings[0].reach != (0, window) and tail == len(reachable) > window + 1 - tokens:
        return None  # the oldest slots are visible beyond the window
    rotation, *others = plan.positions.rotations(reachable, frame)
    if plan.local != "causal" or others or rotation.queries is not frame.index:
        return None
    key = (segment, plan.layout, len(reachable), tail)
    if key not in rows:
        places = reachable.places[..., len(reachable) - tail :]
        row = torch.arange(-tail, tokens, device=places.device) + frame.positions[:, :1]
        slots = ((places == row[:, None, :tail]) & (places != FREE)).all()
        rows[key] = bool(slots & (frame.positions == row[:, tail:]).all())
    return window if rows[key] else None


def banded(part: Keys, own: Keys, tail: int, frame: Frame) -> tuple[list[Keys], Tensor, Tensor]:
    """Return the oldest slots, and rotated keys and values of newest slots and segment."""
    (rotation,), (own_rotation,) = part.rotations, own.rotations
    old = part.keys.shape[2] - tail
    slots = frame.rotate(part.keys, rotation.keys)
    key = torch.cat([slots[:, :, old:], frame.rotate(own.keys, own_rotation.keys)], 2)
    value = torch.cat([part.values[:, :, old:], own.values], 2)
    if not old:
        return [], key, value
    if isinstance(rotation.keys, Tensor):
        rotation = rotation._replace(keys=rotation.keys[..., :old])
    left = Keys(
        part.keys[:, :, :old], part.values[:, :, :old], (rotation,), part.visible[..., :old]
    )
    return [left], key, value


def side_by_side(left: Tensor, right: Tensor, rows: int) -> Tensor:
    """Concatenate masks that may have 1 in place of rows or heads."""
    heads = max(left.shape[1], right.shape[1])
    return torch.cat([x.expand(rows, heads, -1, -1) for x in (left, right)], -1)
