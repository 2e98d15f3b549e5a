"""The attention function that a decoder calls in every layer: read, attend, write.

It is registered with transformers under a name of its own. Memory comes and goes in one object,
the keyword argument `memory` of the model's forward.

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
from unimem.attention.observe import observe
from unimem.attention.parts import Rows
from unimem.attention.reference import Weighing, attend, shares, weigh
from unimem.attention.rotary import Frame, Table, rotate
from unimem.memory.plan import LayerPlan, MemoryPlan
from unimem.memory.state import FREE, Memory, Segment
from unimem.model.context import Body
from unimem.model.offload import HOME, Shelf, sent_home

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
    `memories` are read and never changed; in `written` and `losses` the first entry of a layer
    counts, so that activation checkpointing, which runs a layer again, writes once.
    """

    def __init__(
        self,
        plan: MemoryPlan,
        memories: Mapping[int, Memory],
        *,
        table: Callable[[Tensor], Table],
        body: Body,
        prefix: int,
        index: Tensor,
        positions: Tensor,
        stored: Tensor,
        starts: Tensor,
        detach: list[bool],
        seen: Tensor | None = None,
        neutral: bool = False,
        windows: Mapping[int, int] | None = None,
        kernel: Kernel | None = None,
        use: Use = "own",
        weights: Mapping[str, Tensor] | None = None,
        watch: Watch | None = None,
        writes: bool = True,
    ):
        """Describe S segments of L tokens each.

        `body` says how the N tokens between the soft ones stand, `prefix` how many soft ones stand
        in front. index [B or 1, L] are rotary indices, positions [B, S, L] places in the document,
        stored [B, S, N] the same without the soft tokens and `FREE` for padding, starts [B, S]
        whether a segment begins a document, `detach` whether gradient is cut before a segment,
        `seen` [B, 1, L, L] a mask if it is not plainly causal, `neutral` is as in `Frame`, windows
        the sliding window of each layer that has one, weights what memory adds to the model's.
        `kernel` is that of the fast form, None for the reference; `watch` is told what the text
        tokens read, which only the reference can say. Without `writes` memory stays as it is: the
        segment, then the only one, is not finished.
        """
        self.plan, self.memories, self.written = plan, memories, dict[int, Memory]()
        self.losses = dict[int, list[Tensor]]()
        self.table, self.index, self.positions = table, index, positions
        self.tokens, self.body = body, slice(prefix, prefix + len(body.source))
        self.stored, self.starts, self.detach = stored, starts, detach
        self.neutral, self.windows, self.kernel = neutral, windows or {}, kernel
        self.picks: Picks = {}
        self.shelf = Shelf(list(plan.layers), memories, stored.device) if plan.offload else None
        self.use, self.weights, self.watch, self.writes = use, weights or {}, watch, writes
        self.plainly, self._narrow = seen is None, dict[int, Tensor]()
        self.seen = causal(index.shape[1], index.device) if seen is None else seen
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
        return Frame(self.table, self.index, positions, origin, length, real, self.neutral)

    def within(self, layer: int) -> tuple[Tensor, bool]:
        """Return the segment's mask [B or 1, 1, L, L], and whether it is the causal mask.

        A layer's sliding window counts tokens in the order in which they stand, soft ones too.
        """
        window = self.windows.get(layer)
        if window is None or window >= self.index.shape[1]:
            return self.seen, self.plainly
        if window not in self._narrow:
            self._narrow[window] = self.seen.triu(1 - window)
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
            return replace(memory.last(0), matrix=None)
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
    layer, body = plan.layer, call.body
    state = call.memories[layer] if layer in call.memories else Memory.empty(key)
    state = state.to(key.device if call.shelf is None else HOME)
    length = call.index.shape[1]
    gate, weights = call.weights.get(f"gates.{layer}"), call.layer_weights(layer)
    seen, plainly = call.within(layer)
    losses: list[Tensor] = []
    outs: list[Tensor] = []
    for s, parts in enumerate(zip(*(t.split(length, 2) for t in (query, key, value)), strict=True)):
        q, k, v = parts
        state = state.forget(call.starts[:, s])
        if call.detach[s]:
            state = state.detach()
        here = state
        if call.shelf is not None:  # activation checkpointing runs the layers again, last one first
            here = call.shelf.fetch(layer, state, ahead=layer not in call.written)
        shown = call.shown(here, s)
        if module.training and plan.reading.crossbatch:
            shown = _with_other_rows(shown, plan.reading.crossbatch)
        tokens = Memory(k[:, :, body], v[:, :, body], call.stored[:, s])
        for writing in plan.writings:
            tokens = writing.annotate(tokens, call.tokens.inserted)
        frame = call.frames[s]._replace(window=call.windows.get(layer))
        watch = call.watch if len(shown) else None
        if not len(shown) and shown.matrix is None and plan.plain:
            out = _within_segments(module, q, k, v, scaling, call)
        elif call.kernel is not None and watch is None and plan.only_by_reference is None:
            keeps = module.training and torch.is_grad_enabled()
            out = attend_fast(
                q,
                k,
                v,
                shown,
                plan,
                frame,
                scaling=scaling,
                seen=seen,
                plainly=plainly,
                gate=gate,
                kernel=call.kernel,
                picks=call.picks if keeps else None,
                place=(layer, s),
                rows=call.rows,
            ).transpose(1, 2)
        else:
            notes = tokens.notes
            weighing = weigh(q, k, shown, plan, frame, scaling=scaling, seen=seen, notes=notes)
            out = attend(weighing, q, v, shown, plan, gate).transpose(1, 2)
            state, tokens = _looked_at(weighing, call, s, plan, shown, state, tokens, gate, watch)
        outs.append(out)
        if not call.writes:
            continue
        where = call.tokens.text_at, call.tokens.inserted_at
        segment = Segment(tokens, *where, q[:, :, body], weights, losses)
        if call.shelf is not None:
            segment = sent_home(segment)
        written = reduce(lambda memory, each: each.write(memory, segment), plan.writings, state)
        state = plan.management.evict(written, len(written) - len(state), segment)
    call.written.setdefault(layer, state)
    call.losses.setdefault(layer, losses)
    return torch.cat(outs, 1)


def _looked_at(
    weighing: Weighing,
    call: Call,
    segment: int,
    plan: LayerPlan,
    shown: Memory,
    state: Memory,
    tokens: Memory,
    gate: Tensor | None,
    watch: Watch | None,
) -> tuple[Memory, Memory]:
    """Report to the observer, and note on slots and tokens, how much attention each received."""
    if not plan.observes and watch is None:
        return state, tokens
    body = call.body
    with torch.no_grad():
        share = shares(weighing, shown, plan, gate)[:, :, body]
    slots, own = share[..., : len(shown)], share[..., len(shown) :][..., body]
    if watch is not None:
        text = call.tokens.text_at
        watch(plan.layer, slots[:, :, text], call.stored[:, segment, text], shown)
    if not plan.observes:
        return state, tokens
    mine = call.on_own_slots(slots[..., : len(state)])
    return observe(plan, state, tokens, mine, own)


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
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float, call: Call
) -> Tensor:
    """Attend causally inside each segment, with the model's own kernel."""
    B, _, N, _ = query.shape
    length = call.index.shape[1]
    seen, plainly = call.within(int(module.layer_idx))  # type: ignore[arg-type]
    table = call.table(call.index)
    q, k, v = (
        t.unflatten(2, (N // length, length)).transpose(1, 2).flatten(0, 1)
        for t in (query, key, value)
    )
    out, _ = sdpa_attention_forward(
        module,
        rotate(q, table),
        rotate(k, table),
        v,
        None if plainly else seen,
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
