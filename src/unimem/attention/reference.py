"""One softmax over the chosen memory slots and the causal segment: the form that defines truth.

Memory and segment are two disjoint parts of the keys. Each part has its own softmax and its own
log-sum-exp; fusion weighs the parts. Weighed by their log-sum-exp they are exactly one softmax
over both. A faster form of a part need only give the same output and log-sum-exp.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unimem.attention.grouped import grouped
from unimem.attention.rotary import Frame, dot
from unimem.memory.option import at_least_float32, full_precision, spread
from unimem.memory.plan import LayerPlan
from unimem.memory.positions.base import Positions
from unimem.memory.reading.base import Selection, View
from unimem.memory.state import FREE, Memory


class Part(NamedTuple):
    """Attention over one set of keys."""

    out: Tensor
    """Softmax-weighted values [B, H, T, D]."""
    lse: Tensor
    """Log-sum-exp of the visible logits [B, H, T, 1], float32 at least; hugely negative if there
    is none."""


class Weighing(NamedTuple):
    """The logits of one segment's queries, and which keys they see."""

    memory: Tensor
    """Logits of the slots [B, H, T, M], float32 at least."""
    chosen: Selection
    segment: Tensor
    """Logits of the segment's own tokens [B, H, T, T], float32 at least."""
    seen: Tensor
    """Which of them each query sees [B or 1, 1 or H, T, T]."""


def weigh(
    query: Tensor,
    key: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    *,
    scaling: float,
    seen: Tensor,
    notes: Mapping[str, Tensor],
) -> Weighing:
    """Choose what the segment's queries read, and give all logits.

    query [B, H, T, D] and key [B, G, T, D] are un-rotated; `seen` [B or 1, 1, T, T] says which
    tokens of the segment each query may see, `notes` [B, 1, T] what writing noted of them.
    """
    query = query * scaling
    scheme, heads = plan.positions, query.shape[1]
    seen, times = own_links(plan, frame, seen, heads)

    def score(keys: Tensor, visible: Tensor | None = None) -> Tensor:
        return at_least_float32(scheme.score(query, keys, memory, frame, visible))

    searches = any(reading.searches for reading in plan.reading.parts)
    known = score(memory.keys.detach()) if searches else None
    chosen, placed = _choose(query, memory, plan, frame, known), None
    if scheme.rearranges:
        known, placed = None, chosen.visible
    if scheme.after_choice:
        logits, segment = _placed(query, key, memory, scheme, frame, chosen, seen)
    else:
        segment = at_least_float32(frame.dot(query, frame.index, key, frame.index))
        if known is not None and not memory.keys.requires_grad:
            logits = known
        else:
            logits = score(memory.keys, placed)
    if memory.keys.requires_grad and not chosen.all_live:
        if scheme.after_choice:
            known, _ = _placed(query, key, memory.detach(), scheme, frame, chosen, seen)
        elif known is None:
            known = score(memory.keys.detach(), placed)
        logits = logits.where(chosen.live, known)
    if chosen.times is not None:
        logits = logits + chosen.times.to(logits.dtype).clamp_min(1).log()
    if times is not None:
        segment = segment + times.to(segment.dtype).clamp_min(1).log()
    weighing = Weighing(logits, chosen, segment, seen)
    return grouped(weighing, memory, notes) if plan.fusion == "grouped" else weighing


def own_links(
    plan: LayerPlan, frame: Frame, seen: Tensor, heads: int
) -> tuple[Tensor, Tensor | None]:
    """Return which tokens of its segment each query sees, and their multiplicity (None: 1)."""
    if plan.local != "reading":
        return seen, None
    places = frame.positions[:, None]
    links = plan.reading.links(places[..., None], places[:, :, None], heads, plan.layer)
    own = torch.eye(seen.shape[-1], dtype=torch.bool, device=seen.device)
    return seen & ((links > 0) | own), links if links.dtype.is_floating_point else None


def attend(
    weighing: Weighing,
    query: Tensor,
    value: Tensor,
    memory: Memory,
    plan: LayerPlan,
    gate: Tensor | None,
) -> Tensor:
    """Mix the values of the segment [B, G, T, D] and of `memory` [B, H, T, D].

    `query` [B, H, T, D] is un-rotated and asks an associative memory; `gate` [H] is the fusion's,
    before its sigmoid.
    """
    segment = _part(weighing.segment, weighing.seen, value)
    if not len(memory):
        out = segment.out
    else:
        chosen = weighing.chosen
        visible, live = chosen.visible, None if chosen.all_live else chosen.live
        read = _part(weighing.memory, visible, memory.values, live)
        if gate is not None and not plan.reads_matrix:
            return fuse_gated(read.out, segment.out, gate, visible.any(-1, keepdim=True))
        out = fuse_joint(read, segment)
    if gate is not None and memory.matrix is not None:
        answer, known = recall(query, memory.matrix)
        return fuse_gated(answer.to(out.dtype), out, gate, known)
    return out


def shares(weighing: Weighing, memory: Memory, plan: LayerPlan, gate: Tensor | None) -> Tensor:
    """Return the share of each query's attention that falls on slots and tokens [B, H, T, M + T].

    What is missing to 1 falls on an associative memory.
    """
    visible = weighing.chosen.visible
    slots = weighing.memory.masked_fill(~visible, -torch.inf)
    tokens = weighing.segment.masked_fill(~weighing.seen, -torch.inf)
    if gate is not None and not plan.reads_matrix:
        share = gate.sigmoid()[:, None, None] * visible.any(-1, keepdim=True)
        read = slots.softmax(-1).nan_to_num() * share
        return torch.cat([read, tokens.softmax(-1) * (1 - share)], -1)
    both = torch.cat([slots, tokens], -1).softmax(-1)
    if gate is not None and memory.matrix is not None:
        known = memory.matrix[..., -1].sum(-1) > 0
        both = both * (1 - gate.sigmoid() * spread(known, len(gate)))[..., None, None]
    return both


def fuse_joint(*parts: Part) -> Tensor:
    """Weigh parts by their log-sum-exp: one softmax over all their keys."""
    total = torch.stack([part.lse for part in parts]).logsumexp(0)
    return sum(
        (part.out * (part.lse - total).exp().to(part.out.dtype) for part in parts),
        start=torch.zeros_like(parts[0].out),
    )


def fuse_gated(read: Tensor, other: Tensor, gate: Tensor, any_visible: Tensor) -> Tensor:
    """Weigh memory by sigmoid(gate) for each head (Wu 2022, section 3.2), 0 if it shows nothing."""
    share = gate.sigmoid()[:, None, None] * any_visible
    share = share.to(read.dtype)
    return read * share + other * (1 - share)


def _choose(
    query: Tensor, memory: Memory, plan: LayerPlan, frame: Frame, logits: Tensor | None
) -> Selection:
    """Let the reading choose among all slots, by their logits if they are known."""
    if not len(memory):
        nothing = query.new_zeros(*query.shape[:3], 0, dtype=torch.bool)
        return Selection(nothing, nothing)
    free = ~memory.used[:, :, None, :].expand(-1, -1, query.shape[2], -1)
    if frame.window is not None:
        free = free | frame.too_far(memory.places)
    return plan.reading.select(
        View(
            memory=memory,
            query=query,
            frame=frame,
            positions=plan.positions,
            taken=spread(free, query.shape[1]),
            logits=logits,
            layer=plan.layer,
        )
    )


def _placed(
    query: Tensor,
    key: Tensor,
    memory: Memory,
    scheme: Positions,
    frame: Frame,
    chosen: Selection,
    seen: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logits of slots and tokens under a scheme that places them after the choice."""
    shape = (*query.shape[:3], -1)
    visible = torch.cat([chosen.visible.expand(shape), seen.expand(shape)], -1)
    tokens = Memory(key, key, frame.positions.where(frame.real, FREE))
    slots = memory.append(tokens)
    logits = at_least_float32(scheme.score(query, slots.keys, slots, frame, visible))
    return logits[..., : len(memory)], logits[..., len(memory) :]


def recall(query: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Ask an associative memory [B, G, D, D + 1]: the answers [B, H, T, D], and which it has."""
    features = torch.nn.functional.elu(at_least_float32(query)) + 1
    with full_precision(query):
        answer = dot(features, matrix.mT)
    weight = answer[..., -1:]
    known = weight > 0
    return answer[..., :-1] / weight.where(known, 1), known


def _part(logits: Tensor, visible: Tensor, values: Tensor, live: Tensor | None = None) -> Part:
    """Softmax over the visible logits, in their type; gradient enters the values of live slots.

    All are live if none are named.
    """
    logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    weights = logits.softmax(-1)
    # the largest weight is exp(largest logit - lse): cheaper than another pass of exponentials
    lse = logits.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    weights = weights.to(values.dtype)
    if live is not None and values.requires_grad:
        out = _mix(weights * live, values) + _mix(weights * ~live, values.detach())
    else:
        out = _mix(weights, values)
    return Part(out, lse)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """Sum values [B, G, M, D] under weights [B, H, T, M]."""
    B, H, T, M = weights.shape
    return (weights.reshape(B, values.shape[1], -1, M) @ values).view(B, H, T, -1)
