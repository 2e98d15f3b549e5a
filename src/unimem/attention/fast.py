"""The fast form of `reference.py`: the same numbers, without the logits of a whole memory.

Slots that are read by position, and the segment, are dense parts of one softmax (`parts.py`); slots
that are found by search are a sparse part. A plan with a `needs_reference` has no fast form.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, N of them within reach,
D head size.
"""

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from unimem.attention.kernels.base import Kernel, accumulation_dtype
from unimem.attention.merge import Dense, Sparse, merge_parts, picked_dot
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
from unimem.attention.reference import fuse_gated, own_links
from unimem.attention.rotary import Frame
from unimem.attention.search import search
from unimem.memory.plan import LayerPlan
from unimem.memory.positions.base import Rotation
from unimem.memory.reading.base import Search, Selection
from unimem.memory.state import Memory
from unimem.memory.tensors import full_precision, repeat_kv, to_unit_length

Picks = MutableMapping[tuple[int, int], tuple[Tensor, Tensor]]
"""Search results, index and logits, by layer and segment; recomputed activations reuse them."""


def attend_fast(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    *,
    scaling: float,
    attn_mask: Tensor,
    is_causal: bool = False,
    gate: Tensor | None,
    kernel: Kernel,
    picks: Picks | None = None,
    layer_segment: tuple[int, int] = (0, 0),
    rows: Rows | None = None,
) -> Tensor:
    """Return the output [B, H, T, D] of `compute_logits` and `attend`, with the same arguments.

    `is_causal`: `attn_mask` is the causal mask. `layer_segment` are the layer and the segment of
    the call, under which search results are kept in `picks`; `rows` keeps which slots and segments
    are contiguous.
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
            attn_mask,
            is_causal,
            gate,
            kernel,
            picks,
            layer_segment,
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
    attn_mask: Tensor,
    is_causal: bool,
    gate: Tensor | None,
    kernel: Kernel,
    picks: Picks | None,
    layer_segment: tuple[int, int],
    rows: Rows,
) -> Tensor:
    query, heads = raw * scaling, raw.shape[1]
    is_causal = is_causal and kernel.bands and plan.local == "causal"
    attn_mask, multiplicity = own_links(plan, frame, attn_mask, heads)
    own = Keys(key, value, (Rotation(frame.index, frame.index),), attn_mask, multiplicity)

    def causal() -> Dense:
        """Return the segment as a causal band, which needs no mask."""
        asked, keys = (frame.rotate(x, frame.index).to(value.dtype) for x in (query, key))
        return Dense(asked, keys, value, None, key.shape[2])

    def fused(*sets: Keys, picked: Sparse | None = None, band: Sequence[Dense] = ()) -> Tensor:
        return merge_parts(kernel, [*_dense(query, sets, frame, value.dtype), *band], picked)

    if plan.positions.after_choice:
        chosen = by_place(memory, plan, query, frame)
        return fused(*placed(memory, own, plan, frame, chosen))
    if not len(memory):
        out = fused(band=[causal()]) if is_causal else fused(own)
    else:
        reachable, tail = within_reach(memory, plan)
        wanted, window, sparse = plan.reading.search_for, None, None
        if is_causal and gate is None:
            window = band_of(plan, reachable, tail, frame, rows, layer_segment[1])
        chosen = None
        parts: list[Keys] = []
        if window is not None and wanted is None and tail == len(reachable):
            # The band alone decides what is seen: no mask is needed.
            parts = [
                Keys(
                    reachable.keys,
                    reachable.values,
                    plan.positions.rotations(reachable, frame),
                    attn_mask,
                )
            ]
        elif (chosen := by_place(reachable, plan, query, frame)) is not None:
            parts = split(reachable, plan.positions.rotations(reachable, frame), chosen)
        if wanted is not None:
            sparse = _search(query, memory, plan, frame, wanted, chosen, tail, picks, layer_segment)
        if gate is not None:
            read = fused(*parts, picked=sparse) if parts or sparse else torch.zeros_like(raw)
            any_read = _any_read(query, chosen, sparse)
            own_out = fused(band=[causal()]) if is_causal else fused(own)
            return fuse_gated(read, own_out, gate, any_read)
        if window is None:
            if is_causal:
                out = fused(*parts, picked=sparse, band=[causal()])
            else:
                out = fused(*parts, own, picked=sparse)
        else:
            left, key, value = banded(parts[0], own, tail, frame)
            rotated = frame.rotate(query, frame.index).to(value.dtype)
            band = Dense(rotated, key.to(value.dtype), value, None, window)
            out = fused(*left, picked=sparse, band=[band])
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
    layer_segment: tuple[int, int],
) -> Sparse:
    """Search the slots that each query reads by content, among those not read yet."""
    keys, values = memory.keys, memory.values
    if not wanted.gradient:
        keys, values = keys.detach(), values.detach()
    (rotation,) = plan.positions.rotations(memory, frame)
    rotated = frame.rotate(query, rotation.queries).to(values.dtype)
    keys = frame.rotate(keys, rotation.keys).to(values.dtype)
    if picks is not None and layer_segment in picks:
        return Sparse(rotated, keys, values, *picks[layer_segment])
    with torch.no_grad():
        open_slots, taken = memory.used, None
        if chosen is not None:
            taken = chosen.visible[..., -tail:] if tail else None
            if plan.reach is not None and tail < len(memory):
                column = torch.arange(len(memory), device=keys.device)
                open_slots = open_slots & (column >= first_used(memory) + plan.reach[0])
        if frame.window is not None:
            far = repeat_kv(frame.too_far(memory.places), query.shape[1])
            if taken is None:
                taken = far
            else:
                taken = far | functional.pad(taken, (len(memory) - taken.shape[-1], 0))
        ask, among = rotated, keys
        if wanted.cosine:
            ask = frame.rotate(to_unit_length(query), rotation.queries)
            among = frame.rotate(to_unit_length(memory.keys), rotation.keys)
        index, logits = search(ask, among, wanted.topk, open_slots, taken)
        if wanted.cosine:
            lowest = -torch.inf if wanted.threshold is None else wanted.threshold
            none = (logits == -torch.inf) | (logits < lowest * frame.gain)
            logits = picked_dot(rotated, keys, index).masked_fill(none, -torch.inf)
        if picks is not None:
            picks[layer_segment] = index, logits
    return Sparse(rotated, keys, values, index, logits)


def _any_read(query: Tensor, chosen: Selection | None, sparse: Sparse | None) -> Tensor:
    """Return which queries read anything [B, 1 or H, T, 1]."""
    anything = query.new_zeros(1, 1, query.shape[2], 1, dtype=torch.bool)
    if chosen is not None:
        anything = anything | chosen.visible.any(-1, keepdim=True)
    if sparse is not None:
        anything = anything | (sparse.logits > -torch.inf).any(-1, keepdim=True)
    return anything


def _dense(query: Tensor, sets: Sequence[Keys], frame: Frame, dtype: torch.dtype) -> list[Dense]:
    """Rotate queries and keys; sets with the same query rotation become one part."""
    parts: list[Dense] = []
    asked: list[Tensor | int] = []
    for keys, values, rotations, visible, multiplicity in sets:
        left = visible
        for rotation in rotations:
            mask = left
            if rotation.where is not None:
                where = repeat_kv(rotation.where, query.shape[1])
                mask, left = left & where, left & ~where
            bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            bias.masked_fill_(~mask, -torch.inf)
            if multiplicity is not None:
                bias = bias + multiplicity.to(accumulation_dtype(dtype)).clamp_min(1).log().to(
                    dtype
                )
            rotated = frame.rotate(keys, rotation.keys).to(dtype)
            same = [i for i, other in enumerate(asked) if other is rotation.queries]
            if same:
                parts[same[0]] = _beside(parts[same[0]], rotated, values, bias)
                continue
            asked.append(rotation.queries)
            parts.append(
                Dense(frame.rotate(query, rotation.queries).to(dtype), rotated, values, bias)
            )
    return parts


def _beside(part: Dense, key: Tensor, value: Tensor, bias: Tensor) -> Dense:
    """Append keys to a part."""
    assert part.bias is not None
    rows = max(len(part.bias), len(bias))
    return part._replace(
        key=torch.cat([part.key, key], 2),
        value=torch.cat([part.value, value], 2),
        bias=side_by_side(part.bias, bias, rows),
    )
