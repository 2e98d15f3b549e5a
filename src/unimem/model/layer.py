"""The attention function that a decoder calls in every layer: read, attend, write.

It is registered with transformers under a name of its own. Memory comes and goes in one object,
the keyword argument `context` of the model's forward.

Shapes: B rows, H query heads, G key-value heads, S segments in the call, L tokens of a segment with
its soft tokens, N of them without, T text tokens, D head size.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import reduce
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from unimem.attention.fast import Picks, attend_fast
from unimem.attention.kernels.base import Kernel
from unimem.attention.parts import Rows
from unimem.attention.record_attention import record_attention
from unimem.attention.reference import Logits, attend, attention_weights, compute_logits, fuse_gated
from unimem.attention.rotary import Frame, Table, apply_rotary
from unimem.memory.plan import LayerPlan, MemoryPlan
from unimem.memory.state import FREE, Memory, Segment
from unimem.model.context import SegmentLayout
from unimem.model.offload import HOST, LayerPrefetcher, to_host

NAME = "unimem"

MemoryControl = Literal["own", "off", "other"]
"""Which memory a row reads: its own, none, or its neighbour's in the batch (controls)."""


class AttentionObserver(Protocol):
    """Called with the attention weights while memory is read."""

    def __call__(
        self, layer: int, attention_weights: Tensor, queries: Tensor, memory: Memory
    ) -> None:
        """Receive what a segment's text tokens read in a layer.

        attention_weights [B, H, T, M] of each query, for each slot of `memory`; queries [B, T] are
        the places of the tokens in their documents, `FREE` for padding.
        """
        ...


class SegmentContext:
    """Inputs and outputs of memory in one forward pass of the model.

    A plain class, because FSDP2 rebuilds dataclasses, tuples and dicts that pass a forward.
    `memories` are read and never changed; in `written` and `losses` the first entry of a layer
    counts, so that activation checkpointing, which runs a layer again, writes once.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        memories: Mapping[int, Memory],
        *,
        table: Callable[[Tensor], Table],
        layout: SegmentLayout,
        prefix: int,
        index: Tensor,
        positions: Tensor,
        stored: Tensor,
        starts: Tensor,
        detach: list[bool],
        attn_mask: Tensor | None = None,
        rope_unscaled: bool = False,
        windows: Mapping[int, int] | None = None,
        kernel: Kernel | None = None,
        use: MemoryControl = "own",
        weights: Mapping[str, Tensor] | None = None,
        observer: AttentionObserver | None = None,
        writes: bool = True,
    ):
        """Describe S segments of L tokens each.

        Args:
            plan: the memory of the model.
            memories: the memory of each layer at the beginning of the call.
            table: the model's rotary table as a function of indices.
            layout: the layout of the N tokens of a segment without soft tokens.
            prefix: the number of soft tokens before them.
            index: rotary indices [B or 1, L].
            positions: positions in the document [B, S, L].
            stored: positions of the N tokens [B, S, N], `FREE` for padding.
            starts: whether a segment begins a document [B, S].
            detach: whether gradient is cut before each segment.
            attn_mask: the mask within a segment [B, 1, L, L]; None: causal.
            rope_unscaled: as in `Frame`.
            windows: the sliding window of each layer that has one.
            kernel: the kernel of the fast form; None: the reference.
            use: which memory the rows read.
            weights: the weights of memory, by name.
            observer: receives what the text tokens read; it needs the reference.
            writes: whether the segments are finished and written; else there is one segment.
        """
        self.plan, self.memories, self.written = plan, memories, dict[int, Memory]()
        self.losses = dict[int, list[Tensor]]()
        self.table, self.index, self.positions = table, index, positions
        self.layout = layout
        self.body = slice(prefix, prefix + len(layout.gather_index))
        """The N tokens of a segment among all L."""
        self.stored, self.starts, self.detach = stored, starts, detach
        self.rope_unscaled, self.windows, self.kernel = rope_unscaled, windows or {}, kernel
        self.picks: Picks = {}
        self.prefetcher = (
            LayerPrefetcher(list(plan.layers), memories, stored.device) if plan.offload else None
        )
        self.use, self.weights, self.observer, self.writes = use, weights or {}, observer, writes
        self.is_causal, self._narrow = attn_mask is None, dict[int, Tensor]()
        self.attn_mask = causal(index.shape[1], index.device) if attn_mask is None else attn_mask
        # the same for all layers: made once, for each of their kernels is a launch on a GPU
        self.frames = [self._frame(segment) for segment in range(positions.shape[1])]
        self.rows: Rows = {}

    def _frame(self, segment: int) -> Frame:
        """Return where the queries of a segment stand."""
        positions, body = self.positions[:, segment], self.body
        first = slice(body.start, body.start + 1)
        origin = self.index[:, first] - positions[:, first]
        real = torch.ones_like(positions, dtype=torch.bool)
        real[:, body] = self.stored[:, segment] != FREE
        length = self.plan.segment_length
        return Frame(self.table, self.index, positions, origin, length, real, self.rope_unscaled)

    def within(self, layer: int) -> tuple[Tensor, bool]:
        """Return the segment's mask [B or 1, 1, L, L], and whether it is the causal mask.

        A layer's sliding window counts tokens in the order in which they stand, soft ones too.
        """
        window = self.windows.get(layer)
        if window is None or window >= self.index.shape[1]:
            return self.attn_mask, self.is_causal
        if window not in self._narrow:
            self._narrow[window] = self.attn_mask.triu(1 - window)
        return self._narrow[window], False

    def layer_weights(self, layer: int) -> dict[str, Tensor]:
        """Return the weights that a layer's options declared, by their own names."""
        prefix = f"layers.{layer}."
        return {
            name.removeprefix(prefix): weight
            for name, weight in self.weights.items()
            if name.startswith(prefix)
        }

    def shown(self, memory: Memory, segment: int) -> Memory:
        """Return the memory that the rows see: their own, or a control."""
        if self.use == "own":
            return memory
        if self.use == "off":
            return replace(memory.last(0), recurrent={})
        first = self.positions[:, segment, self.body.start]
        neighbour = neighbours(len(first), first.device)
        return memory.rows(neighbour).moved(first - first[neighbour])

    def on_own_slots(self, share: Tensor) -> Tensor | None:
        """Return the attention that each row's own slots received [B, H, N, M], from all rows."""
        if self.use == "other":
            return share[neighbours(len(share), share.device).argsort()]
        return share if self.use == "own" else None


def unimem_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    context: SegmentContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with memory in the injected layers, and within segments in the others.

    query [B, H, S*L, D], key and value [B, G, S*L, D] arrive un-rotated; gives [B, S*L, H, D].
    Raises ValueError if the model was called without `context`.
    """
    if context is None:
        raise ValueError(
            "this model has memory attached and reads documents by segments: "
            "call unimem.read(model, input_ids) instead of model(input_ids)"
        )
    plan = context.plan.layers.get(int(module.layer_idx))  # type: ignore[arg-type]
    assert scaling is not None, "the decoder's attention passes its scaling"
    key = key.to(value.dtype)
    if plan is None:
        out = _within_segments(module, query, key, value, scaling, context)
    else:
        out = _with_memory(module, query, key, value, scaling, context, plan)
    return out, None


def _with_memory(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    context: SegmentContext,
    plan: LayerPlan,
) -> Tensor:
    """Read, attend, write, one segment after another: a segment never reads itself."""
    layer, body = plan.layer, context.body
    state = context.memories[layer] if layer in context.memories else Memory.empty(key)
    state = state.to(key.device if context.prefetcher is None else HOST)
    length = context.index.shape[1]
    gate, weights = context.weights.get(f"gates.{layer}"), context.layer_weights(layer)
    slot_gate = gate if plan.state_reading is None else None
    attn_mask, is_causal = context.within(layer)
    losses: list[Tensor] = []
    outs: list[Tensor] = []
    for s, parts in enumerate(zip(*(t.split(length, 2) for t in (query, key, value)), strict=True)):
        q, k, v = parts
        state = state.forget(context.starts[:, s])
        if context.detach[s]:
            state = state.detach()
        here = state
        if (
            context.prefetcher is not None
        ):  # activation checkpointing runs the layers again, last one first
            here = context.prefetcher.fetch(layer, state, ahead=layer not in context.written)
        shown = context.shown(here, s)
        if module.training and plan.reading.crossbatch:
            shown = _with_other_rows(shown, plan.reading.crossbatch)
        tokens = Memory(k[:, :, body], v[:, :, body], context.stored[:, s])
        tokens = plan.annotate(tokens, context.layout.inserted)
        answer = None
        if plan.state_reading is not None and shown.recurrent:
            answer = plan.state_reading.answer(q, shown, weights)
        frame = context.frames[s]._replace(window=context.windows.get(layer))
        observer = context.observer if len(shown) else None
        if not len(shown) and not shown.recurrent and plan.is_plain_causal:
            out = _within_segments(module, q, k, v, scaling, context)
        elif context.kernel is not None and observer is None and plan.needs_reference is None:
            keeps = module.training and torch.is_grad_enabled()
            out = attend_fast(
                q,
                k,
                v,
                shown,
                plan,
                frame,
                scaling=scaling,
                attn_mask=attn_mask,
                is_causal=is_causal,
                gate=slot_gate,
                kernel=context.kernel,
                picks=context.picks if keeps else None,
                layer_segment=(layer, s),
                rows=context.rows,
            ).transpose(1, 2)
        else:
            notes = tokens.notes
            weighing = compute_logits(
                q, k, shown, plan, frame, scaling=scaling, attn_mask=attn_mask, notes=notes
            )
            out = attend(weighing, v, shown, slot_gate).transpose(1, 2)
            state, tokens = _report_attention(
                weighing, context, s, plan, shown, state, tokens, gate, answer, observer
            )
        if answer is not None:
            found, known = answer
            assert gate is not None, "validation refuses an answer without a gate"
            out = fuse_gated(found.to(out.dtype), out.transpose(1, 2), gate, known).transpose(1, 2)
        outs.append(out)
        if not context.writes:
            continue
        where = context.layout.text_at, context.layout.inserted_at
        segment = Segment(tokens, *where, q[:, :, body], weights, losses)
        if context.prefetcher is not None:
            segment = to_host(segment)
        state = plan.write(state, segment)
    context.written.setdefault(layer, state)
    context.losses.setdefault(layer, losses)
    return torch.cat(outs, 1)


def _report_attention(
    weighing: Logits,
    context: SegmentContext,
    segment: int,
    plan: LayerPlan,
    shown: Memory,
    state: Memory,
    tokens: Memory,
    gate: Tensor | None,
    answer: tuple[Tensor, Tensor] | None,
    observer: AttentionObserver | None,
) -> tuple[Memory, Memory]:
    """Report to the observer, and note on slots and tokens, how much attention each received."""
    if not plan.observes and observer is None:
        return state, tokens
    body = context.body
    with torch.no_grad():
        share = attention_weights(weighing, gate if plan.state_reading is None else None)
        if answer is not None and gate is not None:
            share = share * (1 - gate.sigmoid()[:, None, None] * answer[1])
        share = share[:, :, body]
    slots, own = share[..., : len(shown)], share[..., len(shown) :][..., body]
    if observer is not None:
        text = context.layout.text_at
        observer(plan.layer, slots[:, :, text], context.stored[:, segment, text], shown)
    if not plan.observes:
        return state, tokens
    mine = context.on_own_slots(slots[..., : len(state)])
    return record_attention(plan, state, tokens, mine, own)


def _with_other_rows(memory: Memory, others: int) -> Memory:
    """Show each row the memories of the `others` rows after it too."""
    rows = memory.keys.shape[0]
    if others >= rows:
        raise ValueError(
            f"memory.crossbatch={others} reads as many other rows, but a batch has {rows} rows; "
            "raise trainer.batch_size or lower memory.crossbatch"
        )
    order = torch.arange(rows, device=memory.keys.device)
    more = (memory.rows(order.roll(-step)) for step in range(1, others + 1))
    return reduce(Memory.append, more, memory)


def _within_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    context: SegmentContext,
) -> Tensor:
    """Attend causally inside each segment, with the model's own kernel."""
    B, _, N, _ = query.shape
    length = context.index.shape[1]
    attn_mask, is_causal = context.within(int(module.layer_idx))  # type: ignore[arg-type]
    table = context.table(context.index)
    q, k, v = (
        t.unflatten(2, (N // length, length)).transpose(1, 2).flatten(0, 1)
        for t in (query, key, value)
    )
    out, _ = sdpa_attention_forward(
        module,
        apply_rotary(q, table),
        apply_rotary(k, table),
        v,
        None if is_causal else attn_mask,
        scaling=scaling,
        is_causal=True,
    )
    return out.reshape(B, N, *out.shape[2:])


def neighbours(rows: int, device: torch.device) -> Tensor:
    """Return for every row the row whose memory it reads under `use="other"`."""
    return torch.arange(rows, device=device).roll(1)


def causal(length: int, device: torch.device) -> Tensor:
    """Return which tokens of a segment each query sees: itself and those before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None]


def _hand_over_mask(*, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """Build no mask: segments and soft tokens have their own."""
    return attention_mask


def register() -> None:
    """Make the attention function known to transformers under `NAME`."""
    AttentionInterface.register(NAME, unimem_attention)
    AttentionMaskInterface.register(NAME, _hand_over_mask)
