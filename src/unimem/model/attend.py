"""One softmax over the chosen memory slots and the causal segment: the form that defines truth.

Memory and segment are two disjoint parts of the keys. Each part has its own softmax and its own
log-sum-exp; fusion weighs the parts. Weighed by their log-sum-exp they are exactly one softmax
over both. A faster form of a part need only give the same output and log-sum-exp.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from unimem.memory.plan import LayerPlan
from unimem.memory.reading.base import Selection
from unimem.memory.state import Memory
from unimem.model.rotary import Frame, dot, memory_scores, rotate


class Part(NamedTuple):
    """Attention over one set of keys."""

    out: Tensor
    """Softmax-weighted values [B, H, T, D]."""
    lse: Tensor
    """Log-sum-exp of the visible logits [B, H, T, 1], float32; hugely negative if none is."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    *,
    scaling: float,
    seen: Tensor,
    gate: Tensor | None,
) -> Tensor:
    """Attend from one segment to itself and to what the plan reads of `memory` [B, H, T, D].

    query [B, H, T, D], key and value [B, G, T, D] are un-rotated; `seen` [B or 1, 1, T, T] says
    which tokens of the segment each query sees; `gate` [H] is the fusion's, before its sigmoid.
    """
    query = query * scaling
    segment = _part(_segment_logits(query, key, frame), seen, value)
    logits, (visible, live) = _memory_logits(query, memory, plan, frame)
    read = _part(logits, visible, memory.values, live)
    if gate is None:
        return fuse_joint(read, segment)
    return fuse_gated(read, segment, gate, visible.any(-1, keepdim=True))


def memory_shares(
    query: Tensor,
    key: Tensor,
    memory: Memory,
    plan: LayerPlan,
    frame: Frame,
    *,
    scaling: float,
    seen: Tensor,
    gate: Tensor | None,
) -> Tensor:
    """Give the share of each query's attention that falls on each memory slot [B, H, T, M].

    The arguments are those of `attend`; what is missing to 1 falls on the segment.
    """
    query = query * scaling
    logits, (visible, _) = _memory_logits(query, memory, plan, frame)
    logits = logits.masked_fill(~visible, -torch.inf)
    if gate is not None:
        share = gate.sigmoid()[:, None, None]
        return (logits - logits.logsumexp(-1, keepdim=True)).exp().nan_to_num() * share
    segment = _segment_logits(query, key, frame).masked_fill(~seen, -torch.inf)
    total = torch.cat([logits, segment], -1).logsumexp(-1, keepdim=True)
    return (logits - total).exp()


def fuse_joint(*parts: Part) -> Tensor:
    """Weigh parts by their log-sum-exp: one softmax over all their keys."""
    total = torch.stack([part.lse for part in parts]).logsumexp(0)
    return sum(
        (part.out * (part.lse - total).exp().to(part.out.dtype) for part in parts),
        start=torch.zeros_like(parts[0].out),
    )


def fuse_gated(read: Part, segment: Part, gate: Tensor, any_visible: Tensor) -> Tensor:
    """Weigh memory by sigmoid(gate) for each head (Wu 2022, section 3.2), 0 if it shows nothing."""
    share = gate.sigmoid()[:, None, None] * any_visible
    share = share.to(read.out.dtype)
    return read.out * share + segment.out * (1 - share)


def _segment_logits(query: Tensor, key: Tensor, frame: Frame) -> Tensor:
    table = frame.table(frame.index)
    return dot(rotate(query, table), rotate(key, table)).float()


def _memory_logits(
    query: Tensor, memory: Memory, plan: LayerPlan, frame: Frame
) -> tuple[Tensor, Selection]:
    """Give the logits of all slots [B, H, T, M], live ones with gradient, and the choice."""
    score = partial(memory_scores, plan.positions, query, positions=memory.positions, frame=frame)
    logits = score(memory.keys.detach()).float()
    taken = ~memory.valid[:, None, None, :].expand(-1, 1, query.shape[2], -1)
    chosen = plan.reading.select(logits, frame.positions, memory, taken)
    if memory.keys.requires_grad:
        logits = score(memory.keys).float().where(chosen.live, logits)
    return logits, chosen


def _part(logits: Tensor, visible: Tensor, values: Tensor, live: Tensor | None = None) -> Part:
    """Softmax over the visible logits, in float32; gradient enters the values of live slots."""
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
