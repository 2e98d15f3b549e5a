"""The fast form of what `attend.py` defines: the same numbers, without all logits of a memory.

What is read by place, and the segment, are dense parts of one softmax (`near.py`); what is found by
search is a sparse part. Which plans have this form says `LayerPlan.only_by_reference`.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, N of them within reach,
D head size.
"""

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unimem.attention.kernels.base import Kernel, wide
from unimem.attention.merge import Dense, Sparse, joint, picked_dot
from unimem.attention.parts import (
    Keys,
    Rows,
    band_of,
    banded,
    by_place,
    first_used,
    placed,
    side_by_side,
    split,
    within_reach,
)
from unimem.attention.reference import fuse_gated, own_links, recall
from unimem.attention.rotary import Frame
from unimem.attention.search import search
from unimem.memory.option import full_precision, spread
from unimem.memory.plan import LayerPlan
from unimem.memory.positions.base import Turn
from unimem.memory.reading.base import Search, Selection, unit
from unimem.memory.state import Memory

Picks = MutableMapping[tuple[int, int], tuple[Tensor, Tensor]]
"""What was found by search, index and logits by layer and segment, so that it is found once."""


def attend_fast(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    *,
    scaling: float,
    seen: Tensor,
    plainly: bool = False,
    gate: Tensor | None,
    kernel: Kernel,
    picks: Picks | None = None,
    place: tuple[int, int] = (0, 0),
    rows: Rows | None = None,
) -> Tensor:
    """Read and mix as `weigh` and `attend` do: [B, H, T, D].

    The arguments are theirs; `plainly` says that `seen` is causal and no more. `place` is the layer
    and the segment of the call. What is searched is looked up in `picks` at that place, and kept
    there; what is known of the order of slots is in `rows`.
    """
    with full_precision(query):
        return _attend(
            query,
            key,
            value,
            memory,
            plan,
            frame,
            scaling,
            seen,
            plainly,
            gate,
            kernel,
            picks,
            place,
            {} if rows is None else rows,
        )


def _attend(
    raw: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    scaling: float,
    seen: Tensor,
    plainly: bool,
    gate: Tensor | None,
    kernel: Kernel,
    picks: Picks | None,
    place: tuple[int, int],
    rows: Rows,
) -> Tensor:
    query, heads = raw * scaling, raw.shape[1]
    plainly = plainly and kernel.bands and plan.local == "causal"
    seen, times = own_links(plan, frame, seen, heads)
    own = Keys(key, value, (Turn(frame.index, frame.index),), seen, times)

    def causal() -> Dense:
        """Return the segment as a band of all that stands before, which needs no mask."""
        asked, keys = (frame.turn(x, frame.index).to(value.dtype) for x in (query, key))
        return Dense(asked, keys, value, None, key.shape[2])

    def fused(*sets: Keys, picked: Sparse | None = None, band: Sequence[Dense] = ()) -> Tensor:
        return joint(kernel, [*_dense(query, sets, frame, value.dtype), *band], picked)

    if plan.positions.after_choice:
        chosen = by_place(memory, plan, query, frame)
        return fused(*placed(memory, own, plan, frame, chosen))
    if not len(memory):
        out = fused(band=[causal()]) if plainly else fused(own)
    else:
        near, tail = within_reach(memory, plan)
        wanted, window, sparse = plan.reading.search_for, None, None
        if plainly and (gate is None or plan.reads_matrix):
            window = band_of(plan, near, tail, frame, rows, place[1])
        chosen = None
        parts: list[Keys] = []
        if window is not None and wanted is None and tail == len(near):
            # seen through the band alone: no mask is needed
            parts = [Keys(near.keys, near.values, plan.positions.turns(near, frame), seen)]
        elif (chosen := by_place(near, plan, query, frame)) is not None:
            parts = split(near, plan.positions.turns(near, frame), chosen)
        if wanted is not None:
            sparse = _search(query, memory, plan, frame, wanted, chosen, tail, picks, place)
        if gate is not None and not plan.reads_matrix:
            read = fused(*parts, picked=sparse) if parts or sparse else torch.zeros_like(raw)
            any_read = _any_read(query, chosen, sparse)
            own_out = fused(band=[causal()]) if plainly else fused(own)
            return fuse_gated(read, own_out, gate, any_read)
        if window is None:
            if plainly:
                out = fused(*parts, picked=sparse, band=[causal()])
            else:
                out = fused(*parts, own, picked=sparse)
        else:
            left, key, value = banded(parts[0], own, tail, frame)
            turned = frame.turn(query, frame.index).to(value.dtype)
            band = Dense(turned, key.to(value.dtype), value, None, window)
            out = fused(*left, picked=sparse, band=[band])
    if gate is not None and memory.matrix is not None:
        answer, known = recall(raw, memory.matrix)
        return fuse_gated(answer.to(out.dtype), out, gate, known)
    return out


def _search(
    query: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    wanted: Search,
    chosen: Selection | None,
    tail: int,
    picks: Picks | None,
    place: tuple[int, int],
) -> Sparse:
    """Find what each query reads by content, among the slots that are left."""
    keys, values = memory.keys, memory.values
    if not wanted.live:
        keys, values = keys.detach(), values.detach()
    (turn,) = plan.positions.turns(memory, frame)
    turned = frame.turn(query, turn.queries).to(values.dtype)
    keys = frame.turn(keys, turn.keys).to(values.dtype)
    if picks is not None and place in picks:
        return Sparse(turned, keys, values, *picks[place])
    with torch.no_grad():
        open_slots, taken = memory.used, None
        if chosen is not None:
            taken = chosen.visible[..., -tail:] if tail else None
            if plan.reach is not None and tail < len(memory):
                column = torch.arange(len(memory), device=keys.device)
                open_slots = open_slots & (column >= first_used(memory) + plan.reach[0])
        if frame.window is not None:
            far = spread(frame.too_far(memory.places), query.shape[1])
            if taken is None:
                taken = far
            else:
                taken = far | functional.pad(taken, (len(memory) - taken.shape[-1], 0))
        ask, among = turned, keys
        if wanted.cosine:
            ask = frame.turn(unit(query), turn.queries)
            among = frame.turn(unit(memory.keys), turn.keys)
        index, logits = search(ask, among, wanted.topk, open_slots, taken)
        if wanted.cosine:
            lowest = -torch.inf if wanted.threshold is None else wanted.threshold
            none = (logits == -torch.inf) | (logits < lowest * frame.gain)
            logits = picked_dot(turned, keys, index).masked_fill(none, -torch.inf)
        if picks is not None:
            picks[place] = index, logits
    return Sparse(turned, keys, values, index, logits)


def _any_read(query: Tensor, chosen: Selection | None, sparse: Sparse | None) -> Tensor:
    """Return which queries read anything [B, 1 or H, T, 1]."""
    anything = query.new_zeros(1, 1, query.shape[2], 1, dtype=torch.bool)
    if chosen is not None:
        anything = anything | chosen.visible.any(-1, keepdim=True)
    if sparse is not None:
        anything = anything | (sparse.logits > -torch.inf).any(-1, keepdim=True)
    return anything


def _dense(query: Tensor, sets: Sequence[Keys], frame: Frame, dtype: torch.dtype) -> list[Dense]:
    """Turn queries and keys, one part for each way of turning; those alike become one."""
    parts: list[Dense] = []
    asked: list[Tensor | int] = []
    for keys, values, turns, visible, times in sets:
        left = visible
        for turn in turns:
            mask = left
            if turn.where is not None:
                where = spread(turn.where, query.shape[1])
                mask, left = left & where, left & ~where
            bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            bias.masked_fill_(~mask, -torch.inf)
            if times is not None:
                bias = bias + times.to(wide(dtype)).clamp_min(1).log().to(dtype)
            turned = frame.turn(keys, turn.keys).to(dtype)
            same = [i for i, other in enumerate(asked) if other is turn.queries]
            if same:
                parts[same[0]] = _beside(parts[same[0]], turned, values, bias)
                continue
            asked.append(turn.queries)
            parts.append(Dense(frame.turn(query, turn.queries).to(dtype), turned, values, bias))
    return parts


def _beside(part: Dense, key: Tensor, value: Tensor, bias: Tensor) -> Dense:
    """Add keys to a part."""
    assert part.bias is not None
    rows = max(len(part.bias), len(bias))
    return part._replace(
        key=torch.cat([part.key, key], 2),
        value=torch.cat([part.value, value], 2),
        bias=side_by_side(part.bias, bias, rows),
    )
