"""Attention over the chosen memory slots and the causal segment: the reference form.

Memory and segment are two disjoint parts of the keys. Each part has its own softmax and its own
log-sum-exp; fusion weights the parts. Weighted by their log-sum-exp they are exactly one softmax
over both. A faster form of a part must return the same output and log-sum-exp.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unimem.attention.rotary import Frame
from unimem.memory.plan import LayerPlan
from unimem.memory.positions.base import Positions
from unimem.memory.reading.base import Selection, View
from unimem.memory.state import FREE, Memory
from unimem.memory.tensors import at_least_float32, repeat_kv


class PartialSoftmax(NamedTuple):
    """Attention over one part of the keys."""

    out: Tensor
    """Softmax-weighted values [B, H, T, D]."""
    lse: Tensor
    """Log-sum-exp of the visible logits [B, H, T, 1], float32 at least; hugely negative if no key
    is visible."""


class Logits(NamedTuple):
    """The logits of a segment's queries, and which keys they see."""

    memory: Tensor
    """Logits of the slots [B, H, T, M], float32 at least."""
    chosen: Selection
    segment: Tensor
    """Logits of the segment's own tokens [B, H, T, T], float32 at least."""
    attn_mask: Tensor
    """Which tokens of the segment each query sees [B or 1, 1 or H, T, T]."""


def compute_logits(
    query: Tensor,
    key: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    *,
    scaling: float,
    attn_mask: Tensor,
    notes: Mapping[str, Tensor],
) -> Logits:
    """Select the slots that the segment's queries read, and return all logits.

    query [B, H, T, D] and key [B, G, T, D] are un-rotated; `attn_mask` [B or 1, 1, T, T] says which
    tokens of the segment each query may see; `notes` [B, 1, T] are the notes of these tokens.
    """
    query = query * scaling
    scheme, heads = plan.positions, query.shape[1]
    attn_mask, multiplicity = own_links(plan, frame, attn_mask, heads)

    def score(keys: Tensor, visible: Tensor | None = None) -> Tensor:
        return at_least_float32(scheme.score(query, keys, memory, frame, visible))

    searches = any(reading.searches for reading in plan.reading.parts)
    known = score(memory.keys.detach()) if searches else None
    chosen, placed = _choose(query, memory, plan, frame, known), None
    if scheme.rearranges:
        known, placed = None, chosen.visible
    if scheme.after_choice:
        logits, segment = _placed(query, key, memory, scheme, frame, chosen, attn_mask)
    else:
        segment = at_least_float32(frame.qk(query, frame.index, key, frame.index))
        if known is not None and not memory.keys.requires_grad:
            logits = known
        else:
            logits = score(memory.keys, placed)
    if memory.keys.requires_grad and chosen.gradient is not True:
        if scheme.after_choice:
            known, _ = _placed(query, key, memory.detach(), scheme, frame, chosen, attn_mask)
        elif known is None:
            known = score(memory.keys.detach(), placed)
        logits = logits.where(chosen.grad_mask, known)
    if chosen.multiplicity is not None:
        logits = logits + chosen.multiplicity.to(logits.dtype).clamp_min(1).log()
    if multiplicity is not None:
        segment = segment + multiplicity.to(segment.dtype).clamp_min(1).log()
    weighing = Logits(logits, chosen, segment, attn_mask)
    return grouped(weighing, memory, notes) if plan.fusion == "grouped" else weighing


def own_links(
    plan: LayerPlan, frame: Frame, attn_mask: Tensor, heads: int
) -> tuple[Tensor, Tensor | None]:
    """Return which tokens of its segment each query sees, and their multiplicity (None: 1)."""
    if plan.local != "reading":
        return attn_mask, None
    places = frame.positions[:, None]
    links = plan.reading.links(places[..., None], places[:, :, None], heads, plan.layer)
    own = torch.eye(attn_mask.shape[-1], dtype=torch.bool, device=attn_mask.device)
    return attn_mask & ((links > 0) | own), links if links.dtype.is_floating_point else None


def attend(weighing: Logits, value: Tensor, memory: Memory, gate: Tensor | None) -> Tensor:
    """Return the attention output [B, H, T, D] over segment (values [B, G, T, D]) and memory.

    `gate` [H] are the logits of the gates between the two; None: one softmax over both.
    """
    segment = _part(weighing.segment, weighing.attn_mask, value)
    if not len(memory):
        out = segment.out
    else:
        chosen = weighing.chosen
        visible, grad_mask = chosen.visible, None if chosen.gradient is True else chosen.grad_mask
        read = _part(weighing.memory, visible, memory.values, grad_mask)
        if gate is not None:
            return fuse_gated(read.out, segment.out, gate, visible.any(-1, keepdim=True))
        out = fuse_joint(read, segment)
    return out


def attention_weights(weighing: Logits, gate: Tensor | None) -> Tensor:
    """Return each query's attention weights on slots and tokens [B, H, T, M + T]."""
    visible = weighing.chosen.visible
    slots = weighing.memory.masked_fill(~visible, -torch.inf)
    tokens = weighing.segment.masked_fill(~weighing.attn_mask, -torch.inf)
    if gate is not None:
        share = gate.sigmoid()[:, None, None] * visible.any(-1, keepdim=True)
        read = slots.softmax(-1).nan_to_num() * share
        return torch.cat([read, tokens.softmax(-1) * (1 - share)], -1)
    return torch.cat([slots, tokens], -1).softmax(-1)


def fuse_joint(*parts: PartialSoftmax) -> Tensor:
    """Combine parts by their log-sum-exp: one softmax over all keys."""
    total = torch.stack([part.lse for part in parts]).logsumexp(0)
    return sum(
        (part.out * (part.lse - total).exp().to(part.out.dtype) for part in parts),
        start=torch.zeros_like(parts[0].out),
    )


def fuse_gated(read: Tensor, other: Tensor, gate: Tensor, any_visible: Tensor) -> Tensor:
    """Weight memory by sigmoid(gate) per head (Wu 2022, 3.2), 0 where no slot is visible."""
    share = gate.sigmoid()[:, None, None] * any_visible
    share = share.to(read.dtype)
    return read * share + other * (1 - share)


def _choose(
    query: Tensor, memory: Memory, plan: LayerPlan, frame: Frame, logits: Tensor | None
) -> Selection:
    """Return the reading's selection among all slots."""
    if not len(memory):
        nothing = query.new_zeros(*query.shape[:3], 0, dtype=torch.bool)
        return Selection(nothing)
    return plan.reading.choose(view(memory, query, plan, frame, logits))


def view(
    memory: Memory, query: Tensor, plan: LayerPlan, frame: Frame, logits: Tensor | None = None
) -> View:
    """Return what a reading chooses from: slots that are used, within the layer's own window."""
    free = ~memory.used[:, :, None, :].expand(-1, -1, query.shape[2], -1)
    if frame.window is not None:
        free = free | frame.too_far(memory.places)
    return View(
        memory=memory,
        query=query,
        frame=frame,
        positions=plan.positions,
        taken=repeat_kv(free, query.shape[1]),
        logits=logits,
        layer=plan.layer,
    )


def slots_and_tokens(memory: Memory, key: Tensor, value: Tensor, frame: Frame) -> Memory:
    """Return one memory of all slots and, behind them, the segment's own tokens."""
    return memory.append(Memory(key, value, frame.positions.where(frame.real, FREE)))


def _placed(
    query: Tensor,
    key: Tensor,
    memory: Memory,
    scheme: Positions,
    frame: Frame,
    chosen: Selection,
    attn_mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the logits of slots and tokens under a scheme that needs the selection first."""
    shape = (*query.shape[:3], -1)
    visible = torch.cat([chosen.visible.expand(shape), attn_mask.expand(shape)], -1)
    slots = slots_and_tokens(memory, key, key, frame)
    logits = at_least_float32(scheme.score(query, slots.keys, slots, frame, visible))
    return logits[..., : len(memory)], logits[..., len(memory) :]


def _part(
    logits: Tensor, visible: Tensor, values: Tensor, grad_mask: Tensor | None = None
) -> PartialSoftmax:
    """Softmax over the visible logits, in their type; gradient enters the values of live slots.

    All are live if none are named.
    """
    logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    weights = logits.softmax(-1)
    # The largest weight is exp(largest logit - lse): cheaper than another pass of exponentials.
    lse = logits.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    weights = weights.to(values.dtype)
    if grad_mask is not None and values.requires_grad:
        out = _mix(weights * grad_mask, values) + _mix(weights * ~grad_mask, values.detach())
    else:
        out = _mix(weights, values)
    return PartialSoftmax(out, lse)


def _mix(weights: Tensor, values: Tensor) -> Tensor:
    """Return the weighted sum of values [B, G, M, D] under weights [B, H, T, M]."""
    B, H, T, M = weights.shape
    return (weights.reshape(B, values.shape[1], -1, M) @ values).view(B, H, T, -1)


def grouped(weighing: Logits, memory: Memory, notes: Mapping[str, Tensor]) -> Logits:
    """Return the logits under which one softmax over all tokens is the grouped softmax.

    Landmark Attention (Mohtashami 2023, arXiv 2305.16300, section 3.1): tokens of a query's own
    block compete with the landmarks of the blocks before it; the weight of a landmark is divided
    among the tokens of its block by a softmax of their own. In logits, a token of another block has
    its own logit, minus the log-sum-exp of its block, plus the logit of its landmark. Landmarks are
    hidden. `notes` are the notes of the segment's tokens.
    """
    slots = weighing.memory.shape[-1]
    logits = torch.cat([weighing.memory, weighing.segment], -1)
    shape = logits.shape
    attn_mask = weighing.attn_mask.expand(shape[0], shape[1], -1, -1)
    visible = torch.cat([weighing.chosen.visible.expand(*shape[:3], slots), attn_mask], -1)
    first, mark = (_noted(name, memory, notes) for name in ("block", "mark"))
    own = first[:, None, None, :] == notes["block"][:, :, :, None]
    mark = (mark > 0)[:, None, None, :]

    begins = torch.ones_like(first, dtype=torch.bool)
    begins[:, 1:] = first[:, 1:] != first[:, :-1]
    block = begins.cumsum(1) - 1
    each = block[:, None, None, :].expand(shape)
    none = logits.new_full((*shape[:3], int(block.max()) + 1), -torch.inf)

    tokens = logits.masked_fill(~visible | mark, -torch.inf)
    highest = none.scatter_reduce(-1, each, tokens.detach(), "amax").clamp_min(-1e30)
    total = torch.zeros_like(none).scatter_add(-1, each, (tokens - highest.gather(-1, each)).exp())
    inside = total.clamp_min(1e-30).log() + highest
    marks = logits.masked_fill(~(visible & mark), -torch.inf)
    marked = none.scatter_reduce(-1, each, marks, "amax").gather(-1, each)
    through = logits - inside.gather(-1, each) + marked.clamp_min(-1e30)
    logits = logits.where(own, through)
    visible = visible & ~mark & (own | (marked > -torch.inf))

    read = visible[..., :slots]
    return weighing._replace(
        memory=logits[..., :slots],
        chosen=weighing.chosen._replace(visible=read),
        segment=logits[..., slots:],
        attn_mask=visible[..., slots:],
    )


def _noted(name: str, memory: Memory, notes: Mapping[str, Tensor]) -> Tensor:
    """Return a note of slots and tokens [B, N]."""
    if not len(memory):
        return notes[name][:, 0]
    return torch.cat([memory.notes[name], notes[name]], -1)[:, 0]
