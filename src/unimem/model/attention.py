"""The attention function that a decoder calls in every layer: read, attend, write.

It is registered with transformers under a name of its own. Memory comes and goes in one object,
the keyword argument `memory` of the model's forward.

Shapes: B rows, H query heads, G key-value heads, S segments in the call, L tokens of a segment
with its soft tokens, T text tokens of a segment, D head size.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from unimem.memory.plan import LayerPlan, MemoryPlan
from unimem.memory.state import FREE, Memory
from unimem.model.attend import attend, memory_shares
from unimem.model.rotary import Frame, Table, rotate

NAME = "unimem"

Use = Literal["own", "off", "other"]
"""Whose memory a row reads: its own, none, or its neighbour's in the batch (the controls)."""


class Watch(Protocol):
    """Looks on while memory is read."""

    def __call__(self, layer: int, shares: Tensor, queries: Tensor, memory: Memory) -> None:
        """Take what a segment's text tokens read in a layer.

        shares [B, H, T, M] of each query's attention, for each slot of `memory`; queries [B, T] are
        the places of the tokens in their documents, `FREE` for padding.
        """
        ...


class Call:
    """What one forward pass needs beyond queries, keys and values, and what it leaves behind.

    A plain class, because FSDP2 rebuilds dataclasses, tuples and dicts that pass a forward.
    `memories` are read and never changed; in `written` the first write of a layer wins, so that
    activation checkpointing, which runs a layer again, writes once.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        memories: Mapping[int, Memory],
        *,
        table: Callable[[Tensor], Table],
        index: Tensor,
        positions: Tensor,
        stored: Tensor,
        starts: Tensor,
        detach: list[bool],
        prefix: int = 0,
        seen: Tensor | None = None,
        use: Use = "own",
        gates: Mapping[str, Tensor] | None = None,
        watch: Watch | None = None,
    ):
        """Describe S segments of L tokens each.

        index [B or 1, L] are rotary indices, positions [B, S, L] places in the document, stored
        [B, S, T] the same for the text only and `FREE` for padding, starts [B, S] whether a
        segment begins a document, `detach` whether gradient is cut before a segment, `prefix` the
        number of soft tokens in front, `seen` [B, 1, L, L] a mask if it is not plainly causal,
        `watch` is told what the text tokens read.
        """
        self.plan, self.memories, self.written = plan, memories, dict[int, Memory]()
        self.table, self.index, self.positions = table, index, positions
        self.stored, self.starts, self.detach = stored, starts, detach
        self.prefix, self.seen, self.use, self.gates = prefix, seen, use, gates or {}
        self.watch = watch

    def frame(self, segment: int) -> Frame:
        """Say where the queries of a segment stand."""
        positions = self.positions[:, segment]
        text = slice(self.prefix, self.prefix + 1)
        origin = self.index[:, text] - positions[:, text]
        return Frame(self.table, self.index, positions, origin, self.plan.segment_length)

    def shown(self, memory: Memory, segment: int) -> Memory:
        """Give the memory that the rows see: their own, or a control."""
        if self.use == "own":
            return memory
        if self.use == "off":
            return memory.last(0)
        first = self.positions[:, segment, self.prefix]
        neighbour = neighbours(len(first), first.device)
        other = memory.rows(neighbour)
        moved = other.positions + (first - first[neighbour])[:, None]
        return replace(other, positions=moved.where(other.valid & (moved >= 0), FREE))


def unimem_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    memory: Call | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with memory in the injected layers, and within segments in the others.

    query [B, H, S*L, D], key and value [B, G, S*L, D] arrive un-rotated; gives [B, S*L, H, D].
    Raises ValueError if the model was called without `memory`.
    """
    if memory is None:
        raise ValueError(
            "this model has memory attached and reads documents by segments: "
            "call unimem.read(model, input_ids) instead of model(input_ids)"
        )
    plan = memory.plan.layers.get(int(module.layer_idx))  # type: ignore[arg-type]
    assert scaling is not None, "the decoder's attention passes its scaling"
    key = key.to(value.dtype)
    if plan is None:
        out = _within_segments(module, query, key, value, scaling, memory)
    else:
        out = _with_memory(module, query, key, value, scaling, memory, plan)
    return out, None


def _with_memory(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    call: Call,
    plan: LayerPlan,
) -> Tensor:
    """Read, attend, write, one segment after another: a segment never reads itself."""
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    state = call.memories[layer] if layer in call.memories else Memory.empty(key)
    length = call.index.shape[1]
    text = slice(call.prefix, call.prefix + call.stored.shape[2])
    outs: list[Tensor] = []
    for s, parts in enumerate(zip(*(t.split(length, 2) for t in (query, key, value)), strict=True)):
        q, k, v = parts
        state = state.forget(call.starts[:, s])
        if call.detach[s]:
            state = state.detach()
        shown = call.shown(state, s)
        if len(shown):
            seen = causal(length, q.device) if call.seen is None else call.seen
            frame = call.frame(s)
            how: dict[str, Any] = {"scaling": scaling, "seen": seen}
            how["gate"] = call.gates.get(str(layer))
            out = attend(q, k, v, shown, plan, frame, **how).transpose(1, 2)
            if call.watch is not None:
                shares = memory_shares(q, k, shown, plan, frame, **how)
                call.watch(layer, shares[:, :, text], call.stored[:, s], shown)
        else:
            out = _within_segments(module, q, k, v, scaling, call)
        outs.append(out)
        segment = Memory(k[:, :, text], v[:, :, text], call.stored[:, s])
        written = reduce(Memory.append, (writing.write(segment) for writing in plan.writings))
        state = plan.management.evict(state.append(written), len(written))
    call.written.setdefault(layer, state)
    return torch.cat(outs, 1)


def _within_segments(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, call: Call
) -> Tensor:
    """Attend causally inside each segment, with the model's own kernel."""
    B, _, N, _ = query.shape
    length = call.index.shape[1]
    table = call.table(call.index)
    q, k, v = (
        t.unflatten(2, (N // length, length)).transpose(1, 2).flatten(0, 1)
        for t in (query, key, value)
    )
    out, _ = sdpa_attention_forward(
        module, rotate(q, table), rotate(k, table), v, call.seen, scaling=scaling, is_causal=True
    )
    return out.reshape(B, N, *out.shape[2:])


def neighbours(rows: int, device: torch.device) -> Tensor:
    """Give for every row the row whose memory it reads under `use="other"`."""
    return torch.arange(rows, device=device).roll(1)


def causal(length: int, device: torch.device) -> Tensor:
    """Say which tokens of a segment each query sees: itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def _hand_over_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Build no mask: segments and soft tokens have their own."""
    return attention_mask


def register() -> None:
    """Make the attention function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, unimem_attention)
    AttentionMaskInterface.register(NAME, _hand_over_mask)
