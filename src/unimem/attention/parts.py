"""What is read of a memory by place, as sets of keys that a kernel can attend to.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, N of them within reach,
D head size.
"""

from collections.abc import Hashable, MutableMapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from unimem.attention.rotary import Frame
from unimem.memory.option import spread
from unimem.memory.plan import LayerPlan
from unimem.memory.positions.base import Turn
from unimem.memory.reading.base import Selection, View
from unimem.memory.state import FREE, Memory

Rows = MutableMapping[Hashable, bool]
"""Whether slots and segment are one row of tokens, by segment and layout of memory: for this a GPU
must be waited for, and layers of one layout need not all ask."""


class Keys(NamedTuple):
    """A set of un-rotated keys and values [B, G, N, D] and who sees them."""

    keys: Tensor
    values: Tensor
    turns: tuple[Turn, ...]
    visible: Tensor
    """[B or 1, 1 or H, T, N]."""
    times: Tensor | None = None
    """How often each counts, of the same shape; None for once."""


def within_reach(memory: Memory, plan: LayerPlan) -> tuple[Memory, int]:
    """Cut a memory down to the slots that readings by place can see, and say how many are newest.

    The oldest slots come first, gathered for each row, and stand in no second place.
    """
    if plan.reach is None:
        return memory, len(memory)
    oldest, newest = plan.reach
    M = len(memory)
    if oldest + newest >= M:
        return memory, M
    bare = replace(memory, notes={}, matrix=None)
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


def by_place(near: Memory, plan: LayerPlan, query: Tensor, frame: Frame) -> Selection | None:
    """Let the readings that do not search choose; None if there are none."""
    readings = plan.reading.content_free
    if not readings or not len(near):
        return None
    free = ~near.used[:, :, None, :].expand(-1, -1, query.shape[2], -1)
    if frame.window is not None:
        free = free | frame.too_far(near.places)
    taken = spread(free, query.shape[1])
    view = View(
        memory=near,
        query=query,
        frame=frame,
        positions=plan.positions,
        taken=taken,
        logits=None,
        layer=plan.layer,
    )
    chosen = readings[0].select(view)
    for reading in readings[1:]:
        chosen |= reading.select(replace(view, taken=taken | chosen.visible))
    return chosen


def split(near: Memory, turns: tuple[Turn, ...], chosen: Selection) -> list[Keys]:
    """Return the slots chosen by place, apart those into which no gradient enters."""
    keys, values, (visible, live, times) = near.keys, near.values, chosen
    if chosen.all_live or not keys.requires_grad:
        return [Keys(keys, values, turns, visible, times)]
    if live.shape[2] == 1:
        alive = _of_groups(live[:, :, 0], keys.shape[1])[..., None]
        keys, values = (x.where(alive, x.detach()) for x in (keys, values))
        return [Keys(keys, values, turns, visible, times)]
    dead = Keys(keys.detach(), values.detach(), turns, visible & ~live, times)
    return [Keys(keys, values, turns, visible & live, times), dead]


def _of_groups(said: Tensor, groups: int) -> Tensor:
    """Return of each key-value head what is said alike of its query heads [B, 1 or H, ...]."""
    return said if said.shape[1] == 1 else said[:, :: said.shape[1] // groups]


def placed(
    memory: Memory, own: Keys, plan: LayerPlan, frame: Frame, chosen: Selection | None
) -> list[Keys]:
    """Put slots and segment into one set, whose places depend on what is seen of both."""
    tokens = Memory(own.keys, own.values, frame.positions.where(frame.real, FREE))
    slots = memory.append(tokens)
    B, _, T, _ = own.keys.shape
    if chosen is None:
        nothing = own.visible.new_zeros(1, 1, T, len(memory))
        chosen = Selection(nothing, nothing)
    visible = side_by_side(chosen.visible, own.visible, B)
    live, times = visible, None
    if not chosen.all_live:
        alive = chosen.live.expand(*chosen.live.shape[:2], T, len(memory))
        live = side_by_side(alive, torch.ones_like(own.visible), B)
    if chosen.times is not None or own.times is not None:
        once = own.keys.new_ones(1, 1, 1, 1)
        left, right = (once if own is None else own for own in (chosen.times, own.times))
        left = left.expand(*left.shape[:2], T, len(memory))
        times = side_by_side(left, right.expand(*right.shape[:2], T, T), B)
    turns = plan.positions.turns(slots, frame, visible)
    return split(slots, turns, Selection(visible, live, times))


def band_of(
    plan: LayerPlan, near: Memory, tail: int, frame: Frame, rows: Rows, segment: Hashable
) -> int | None:
    """Return the window if newest slots and segment are one row of tokens seen through one.

    Looks at the places once for all layers of one layout, and keeps in `rows` what it saw.
    """
    readings, tokens = plan.reading.content_free, frame.positions.shape[1]
    window = readings[0].band if len(readings) == 1 else None
    if window is None or tail == len(near) > window or tokens > window + 1:
        return None
    if frame.window is not None and window >= frame.window:
        return None  # the layer's own window is narrower
    if readings[0].reach != (0, window) and tail == len(near) > window + 1 - tokens:
        return None  # the oldest slots are seen from farther away than the window
    turn, *others = plan.positions.turns(near, frame)
    if plan.local != "causal" or others or turn.queries is not frame.index:
        return None
    key = (segment, plan.layout, len(near), tail)
    if key not in rows:
        places = near.places[..., len(near) - tail :]
        row = torch.arange(-tail, tokens, device=places.device) + frame.positions[:, :1]
        slots = ((places == row[:, None, :tail]) & (places != FREE)).all()
        rows[key] = bool(slots & (frame.positions == row[:, tail:]).all())
    return window if rows[key] else None


def banded(part: Keys, own: Keys, tail: int, frame: Frame) -> tuple[list[Keys], Tensor, Tensor]:
    """Put the newest `tail` slots in front of the segment: what is left, and turned keys, values.

    Left are the oldest slots.
    """
    (turn,), (own_turn,) = part.turns, own.turns
    old = part.keys.shape[2] - tail
    slots = frame.turn(part.keys, turn.keys)
    key = torch.cat([slots[:, :, old:], frame.turn(own.keys, own_turn.keys)], 2)
    value = torch.cat([part.values[:, :, old:], own.values], 2)
    if not old:
        return [], key, value
    if isinstance(turn.keys, Tensor):
        turn = turn._replace(keys=turn.keys[..., :old])
    left = Keys(part.keys[:, :, :old], part.values[:, :, :old], (turn,), part.visible[..., :old])
    return [left], key, value


def side_by_side(left: Tensor, right: Tensor, rows: int) -> Tensor:
    """Put masks beside each other that may say one thing for all rows or heads."""
    heads = max(left.shape[1], right.shape[1])
    return torch.cat([x.expand(rows, heads, -1, -1) for x in (left, right)], -1)
