"""Segments in order: the bank of one comes out, and goes into the next.

A layer's memory depends only on that layer's keys and values of earlier segments. Without soft
tokens one model call may therefore span many segments, with the loop over them inside attention,
and equals the recurrence exactly. Soft tokens carry the last layer's output into the next
segment's input, and surprise is what the last layer makes of a segment: then each segment is a
call of its own.

Shapes: B rows, S segments, T text tokens of a segment, N of them with what writing inserted, P and
n soft tokens before and behind, L = P + N + n, E hidden size, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from unimem.attention.backend import choose
from unimem.attention.rotary import Table
from unimem.memory.bank import MemoryBank, OpenSegment, SoftMemory
from unimem.memory.plan import LayerPlan
from unimem.memory.state import FREE, Memory
from unimem.memory.tensors import at_least_float32
from unimem.model.attach import AttachedMemory, attached
from unimem.model.context import segment_layout
from unimem.model.layer import AttentionObserver, MemoryControl, SegmentContext, causal, neighbours

LOGITS_AT_ONCE = 2**24
"""Logits that are held at a time while losses are computed: 64 MB in float32."""


@dataclass(frozen=True)
class Reading:
    """What reading documents gives."""

    hidden: Tensor
    """[B, N, E]: the final hidden state of each token, 0 for padding."""
    nll: Tensor
    """[B, N]: negative log-likelihood of each token in nats, NaN where nothing predicts it."""
    bank: MemoryBank
    """What is remembered; reading on from it continues the documents."""
    lengths: Tensor
    """[B]: how many tokens of each row were read; the rest is padding."""
    head: Callable[[Tensor], Tensor] = field(repr=False)
    """The model's output layer: logits [..., V] of hidden states [..., E]."""

    @property
    def logits(self) -> Tensor:
        """[B, N, V]: the prediction of the token after each, NaN for padding.

        Computed each time it is asked for, with the weights of then, and not kept: with a large
        vocabulary it is by far the largest tensor. `last_logits`, or `head` of some of the hidden
        states, needs less.
        """
        logits = self.head(self.hidden)
        padding = torch.arange(logits.shape[1], device=logits.device) >= self.lengths[:, None]
        return logits.masked_fill(padding[..., None], torch.nan) if padding.any() else logits

    @property
    def last_logits(self) -> Tensor:
        """[B, V]: the prediction of the token after each row's last; NaN for a row of no tokens."""
        rows = torch.arange(len(self.hidden), device=self.hidden.device)
        logits = self.head(self.hidden[rows, (self.lengths - 1).clamp_min(0)])
        return logits.masked_fill(self.lengths[:, None] == 0, torch.nan)


def read(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    lengths: Tensor | Sequence[int] | None = None,
    attention_mask: Tensor | None = None,
    bank: MemoryBank | None = None,
    end: bool = False,
    gradient: bool | None = None,
    use: MemoryControl = "own",
    segments_per_call: int = 8,
) -> Reading:
    """Read documents `input_ids` [B, N] of any length, by segments, from empty memory or `bank`.

    Of each row the first `lengths` [B] tokens are read, or those where `attention_mask` [B, N] is
    1, which must come first. The rest is padding: it is neither remembered nor scored, and every
    row is its document read alone.

    A segment enters memory when it is full. The tokens behind the last full one wait in the bank
    (`MemoryBank.open`), and the next call that reads on reads them again from the segment's start:
    pieces of any size give what reading the whole gives, at the cost of up to
    memory.segment_length - 1 tokens more for each call. Where a segment chooses as a whole what it
    reads (memory.retrieval=segment), a prediction made before the segment is full is that of a
    document that ends there. `end=True` says that the segment ends with these tokens, full or not:
    it is remembered like the others, and what is read on begins a new one. A new document starts
    without a bank, or with `bank.forget(rows)`.

    `gradient` says whether the computation's graph is kept (if gradient is enabled at all); null
    for only while the model is in training mode. Gradient is cut at the start of a call, and
    reaches memory.bptt_segments segments back. The first token of a document has no prediction:
    its NLL is NaN. `use` shows the rows their own memory, none (`off`), or their neighbour's
    (`other`).

    Raises ValueError if the model has no memory attached or an argument does not fit, and TypeError
    for what is no tensor of token ids, no `MemoryBank` or no model.
    """
    memory = attached(model)
    ids, counts = _checked_ids(model, input_ids, lengths, attention_mask)
    bank = _checked_bank(bank, ids, use)
    if segments_per_call < 1:
        raise ValueError(f"segments_per_call={segments_per_call} must be 1 or more")
    opened = bank.open or OpenSegment.empty(len(ids), ids.device)
    old = opened.lengths.tolist()
    length = torch.tensor(counts, device=ids.device)
    keeps = torch.is_grad_enabled() and (model.training if gradient is None else gradient)
    with torch.set_grad_enabled(keeps):
        reader = _Reader(
            model,
            memory,
            replace(bank, open=None),
            _joined(opened, ids, length),
            [before + count for before, count in zip(old, counts, strict=True)],
            use,
            segments_per_call,
        )
        reader.full_segments()
        reader.rest(end)
        hidden, head = reader.hidden, _head(model)
        first = hidden.new_full((len(ids), hidden.shape[2]), torch.nan)
        first = first if bank.hidden is None else bank.hidden.detach().to(hidden.dtype)
        place = torch.arange(ids.shape[1], device=ids.device)
        padding = place >= length[:, None]
        if any(old):
            rows = torch.arange(len(ids), device=ids.device)
            before = hidden[rows, (opened.lengths - 1).clamp_min(0)]
            first = before.where((opened.lengths > 0)[:, None], first)
            index = (place + opened.lengths[:, None]).masked_fill(padding, 0)
            hidden = hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))
        if min(counts) < ids.shape[1]:
            hidden = hidden.masked_fill(padding[..., None], 0)
        # 0 where nothing is known, for even an unused NaN would spoil the gradient of the head
        unknown = first.isnan().any(1, keepdim=True)
        first, vocabulary = first.masked_fill(unknown, 0), model.config.vocab_size
        losses = [
            nll_of(head, first[:, None], ids[:, :1], vocabulary).masked_fill(unknown, torch.nan),
            nll_of(head, hidden[:, :-1], ids[:, 1:], vocabulary),
        ]
        nll = torch.cat(losses, 1).masked_fill(padding, torch.nan)
    return Reading(hidden, nll, reader.bank, length, head)


class _Reader:
    """Reads each row of `text` [B, W] up to its own end [B], and keeps bank and hidden states."""

    def __init__(
        self,
        model: PreTrainedModel,
        memory: AttachedMemory,
        bank: MemoryBank,
        text: Tensor,
        ends: list[int],
        use: MemoryControl,
        segments_per_call: int,
    ):
        self.model, self.bank, self.text, self.ends = model, bank, text, ends
        self.length, self.group = memory.plan.segment_length, memory.plan.bptt_segments + 1
        self.use: MemoryControl = use
        self.segments_per_call = segments_per_call
        self.hidden = text.new_zeros(*text.shape, model.config.hidden_size, dtype=model.dtype)
        """[B, W, E]: 0 where nothing was read."""
        crossed = (layer.reading.crossbatch for layer in memory.plan.layers.values())
        # rows that are shown others' memory stay beside them, even if they have come to their end
        self.side_by_side = use == "other" or (model.training and any(crossed))

    def full_segments(self) -> None:
        """Read the whole segments of each row; rows that have more go on without the others."""
        counts = [end // self.length for end in self.ends]
        levels = set(counts)
        if self.side_by_side:
            # padding pushes out of memory what a row that stands by holds: put it back each time
            levels = set(range(min(counts), max(counts) + 1))
        before = 0
        for level in sorted(levels - {0}):
            rows = [row for row, count in enumerate(counts) if count >= level]
            real = [self.length] * len(rows)
            self._read(rows, [before] * len(rows), real, level - before, self.length)
            before = level

    def rest(self, close: bool) -> None:
        """Read what is left of each row; it stays open, or becomes a segment."""
        alike: dict[tuple[int, int], list[int]] = {}
        done = [end // self.length for end in self.ends]
        left = [end % self.length for end in self.ends]
        for row, count in enumerate(left):
            if count:
                # where gradient is cut depends on the segments before; what writing puts behind a
                # segment stands at its own end
                phase = done[row] % self.group if torch.is_grad_enabled() else 0
                alike.setdefault((count if close else 0, phase), []).append(row)
        for (length, _), rows in alike.items():
            real = [left[row] for row in rows]
            self._read(rows, [done[row] for row in rows], real, 1, length or None)
        if any(left) and not close:
            count = torch.tensor(left, device=self.text.device)
            start = torch.tensor(done, device=self.text.device) * self.length
            place = torch.arange(max(left), device=self.text.device)
            index = (start[:, None] + place).clamp_max(self.text.shape[1] - 1)
            tokens = self.text.gather(1, index).masked_fill(place >= count[:, None], 0)
            self.bank = replace(self.bank, open=OpenSegment(tokens, count))

    def _read(
        self, rows: list[int], done: list[int], real: list[int], segments: int, length: int | None
    ) -> None:
        """Read `segments` segments of `real` tokens of some rows, behind those that are `done`.

        They are laid out for `length` tokens each, and remembered; None for one that stays open.
        """
        B, W = self.text.shape
        taken = list(range(B)) if self.side_by_side else rows
        place_of = {row: place for place, row in enumerate(rows)}
        index = torch.tensor(taken, device=self.text.device)
        begins = [done[place_of[row]] * self.length if row in place_of else 0 for row in taken]
        counts = [real[place_of[row]] if row in place_of else 0 for row in taken]
        begin, count = (torch.tensor(x, device=index.device)[:, None] for x in (begins, counts))
        width = max(real)
        place = begin + torch.arange(segments * width, device=index.device)
        bank = self.bank if len(taken) == B else self.bank.rows(index)
        hidden, newer, _ = run(
            self.model,
            bank,
            self.text[index].gather(1, place.clamp_max(W - 1)).view(len(taken), segments, width),
            starts=torch.zeros(len(taken), segments, dtype=torch.bool, device=index.device),
            lengths=count.expand(-1, segments),
            use=self.use,
            segments_per_call=self.segments_per_call,
            before=done[0],
            length=length,
            writes=length is not None,
        )
        if self.hidden.dtype != hidden.dtype:  # autocast
            self.hidden = self.hidden.to(hidden.dtype)
        is_real = (place - begin) % width < count
        which = index[:, None].expand_as(place)[is_real], place[is_real]
        self.hidden[which] = hidden.flatten(1, 2)[is_real]
        if length is None:
            return
        at_end = hidden[torch.arange(len(taken)), -1, (count[:, 0] - 1).clamp_min(0)]
        newer = replace(newer, hidden=at_end)
        if len(rows) == B:
            self.bank = newer
            return
        mine = torch.tensor([taken.index(row) for row in rows], device=index.device)
        newer = newer.rows(mine) if self.side_by_side else newer
        self.bank = self.bank.replaced(torch.tensor(rows, device=index.device), newer)


def _joined(opened: OpenSegment, ids: Tensor, lengths: Tensor) -> Tensor:
    """Put each row's new tokens [B, N] behind those of its open segment; 0 behind its end."""
    old, new = opened.lengths[:, None], lengths[:, None]
    place = torch.arange(int((old + new).max()), device=ids.device).expand(len(ids), -1)
    both = torch.cat([opened.tokens, ids], 1)
    index = place.where(place < old, opened.tokens.shape[1] + place - old)
    text = both.gather(1, index.clamp_max(both.shape[1] - 1))
    return text.masked_fill(place >= old + new, 0)


def _checked_ids(
    model: PreTrainedModel,
    input_ids: Any,
    lengths: Tensor | Sequence[int] | None,
    attention_mask: Tensor | None,
) -> tuple[Tensor, list[int]]:
    """Return the token ids on the model's device, 0 for padding, and how many of each row are real.

    Raises TypeError and ValueError.
    """
    if isinstance(input_ids, Mapping):
        raise TypeError(
            f"input_ids is a {type(input_ids).__name__}; give its tensors: read(model, "
            'batch["input_ids"], attention_mask=batch["attention_mask"]), made with '
            'return_tensors="pt"'
        )
    if not isinstance(input_ids, Tensor):
        raise TypeError(
            f"input_ids must be a tensor of token ids [B, N], got {type(input_ids).__name__}; "
            "give torch.tensor(ids), rows of different length padded and told by lengths="
        )
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(f"input_ids must be [B, N] with N > 0, got {list(input_ids.shape)}")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise ValueError(f"input_ids must hold integers, got {input_ids.dtype}")
    ids = input_ids.to(model.device, torch.long)
    B, N = ids.shape
    counts = [N] * B
    if attention_mask is not None:
        if lengths is not None:
            raise ValueError("lengths and attention_mask say the same; give one of them")
        if attention_mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask must be {[B, N]} like input_ids, got {list(attention_mask.shape)}"
            )
        real = attention_mask.to(ids.device) != 0
        if bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError(
                "attention_mask must be 1 for a row's first tokens and 0 behind them: pad on the "
                'right (tokenizer.padding_side="right")'
            )
        counts = real.sum(1).tolist()
    elif lengths is not None:
        given = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
        whole = isinstance(given, list) and all(type(n) is int for n in given)
        if not whole or len(given) != B or not all(0 <= n <= N for n in given):
            raise ValueError(
                f"lengths must be {B} whole numbers of 0 to {N}, one for each row of input_ids; "
                f"got {given}"
            )
        counts = given
    if not any(counts):
        raise ValueError("there is nothing to read: every row has 0 tokens")
    if min(counts) < N:
        length = torch.tensor(counts, device=ids.device)[:, None]
        ids = ids.masked_fill(torch.arange(N, device=ids.device) >= length, 0)
    known = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    low, high = (int(x) for x in torch.aminmax(ids))
    if low < 0 or high >= known:
        raise ValueError(
            f"input_ids holds {low if low < 0 else high}, but the model knows tokens 0 to "
            f"{known - 1}; padding is told by lengths= or attention_mask="
        )
    return ids, counts


def _checked_bank(bank: Any, ids: Tensor, use: str) -> MemoryBank:
    """Return the bank to read on from. Raises TypeError and ValueError."""
    rows = len(ids)
    if use not in ("own", "off", "other"):
        raise ValueError(f"use={use!r} must be own, off or other")
    if use == "other" and rows < 2:
        raise ValueError("use=other shows each row its neighbour's memory: give two rows or more")
    if bank is None:
        return MemoryBank.empty(rows, ids.device)
    if not isinstance(bank, MemoryBank):
        raise TypeError(f"bank must be the bank of a reading, got {type(bank).__name__}")
    if len(bank.position) != rows:
        raise ValueError(
            f"bank has {len(bank.position)} rows but input_ids {rows}: read on with the same rows, "
            "or take some with bank.rows(index)"
        )
    return bank


def _head(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """Return the output layer, under the autocast and the gradient mode of now."""
    layer = cast(torch.nn.Module, model.get_output_embeddings())
    kind, keeps = model.device.type, torch.is_grad_enabled()
    dtype, casts = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

    def head(hidden: Tensor) -> Tensor:
        with (
            torch.autocast(kind, dtype, enabled=casts),
            torch.set_grad_enabled(keeps and torch.is_grad_enabled()),
        ):
            return layer(hidden)

    return head


def nll_of(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocabulary: int
) -> Tensor:
    """Negative log-likelihood of targets [B, N] that hidden [B, N, E] predicts, few logits a time.

    As `token_nll`; `vocabulary` is the number of logits of a token.
    """
    step = max(1, LOGITS_AT_ONCE // (len(hidden) * vocabulary))
    parts = zip(hidden.split(step, 1), targets.split(step, 1), strict=True)
    return torch.cat([token_nll(head(h), t) for h, t in parts], 1)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of targets [...] under logits [..., V], in nats.

    In float32 at least; 0 for target -100.
    """
    rows = at_least_float32(logits.flatten(0, -2))
    flat = F.cross_entropy(rows, targets.flatten(), reduction="none", ignore_index=-100)
    return flat.view(targets.shape)


class Segments(NamedTuple):
    """What `run` returns."""

    hidden: Tensor
    """Final hidden states [B, S, T, E]."""
    bank: MemoryBank
    """The memory after the last segment."""
    losses: list[Tensor]
    """Auxiliary losses of memory options, one number for each layer and segment that has one."""


def run(
    model: PreTrainedModel,
    bank: MemoryBank,
    input_ids: Tensor,
    *,
    starts: Tensor,
    lengths: Tensor,
    use: MemoryControl = "own",
    segments_per_call: int | None = None,
    before: int = 0,
    observer: AttentionObserver | None = None,
    length: int | None = None,
    writes: bool = True,
) -> Segments:
    """Read S segments of each row.

    Gradient reaches `bptt_segments` segments back from the last segment of each group of
    `bptt_segments` + 1 segments.

    Args:
        model: the model, with memory attached.
        bank: the memory of the rows before these segments.
        input_ids: [B, S, T], T at most memory.segment_length, and less only if no row has more real
            tokens.
        starts: whether a segment begins a document [B, S]; the row then forgets.
        lengths: the number of real tokens [B, S]; the rest is padding, never remembered.
        use: which memory the rows read.
        segments_per_call: segments that one call of the model reads; None: all, if possible.
        before: the number of segments before these, from which the groups of gradient are counted.
        observer: receives what is read of memory.
        length: the length for which writing lays out inserted tokens; None: memory.segment_length.
        writes: whether the segments are finished. If not, there is one, and the bank is unchanged.

    Raises:
        ValueError: the bank has an open segment, which only `read` continues.
    """
    if bank.open is not None:
        raise ValueError("the bank has an open segment: read on with unimem.read")
    memory = attached(model)
    length = max(memory.plan.segment_length, input_ids.shape[2]) if length is None else length
    S = input_ids.shape[1]
    step = 1 if memory.plan.one_by_one else segments_per_call or S
    hiddens: list[Tensor] = []
    losses: list[Tensor] = []
    for s in range(0, S, step):
        part = slice(s, s + step)
        group = memory.plan.bptt_segments + 1
        detach = [(before + i) % group == 0 for i in range(S)[part]]
        hidden, bank = _call(
            model,
            memory,
            bank.detach() if detach[0] else bank,
            input_ids[:, part],
            starts[:, part],
            lengths[:, part],
            detach,
            use,
            observer,
            losses,
            length,
            writes,
        )
        hiddens.append(hidden)
    return Segments(torch.cat(hiddens, 1), bank, losses)


def segment_nll(
    model: PreTrainedModel,
    bank: MemoryBank,
    input_ids: Tensor,
    targets: Tensor,
    *,
    starts: Tensor,
    lengths: Tensor,
    use: MemoryControl = "own",
    observer: AttentionObserver | None = None,
) -> tuple[Tensor, MemoryBank, list[Tensor]]:
    """Return the NLL of every target [B, S, T] (0 for -100), the bank, and auxiliary losses.

    The arguments are those of `run`. Logits are computed one segment at a time: the logits of all
    segments would be the largest tensor by far.
    """
    hidden, bank, losses = run(
        model, bank, input_ids, starts=starts, lengths=lengths, use=use, observer=observer
    )
    head = cast(torch.nn.Module, model.get_output_embeddings())
    pieces = zip(hidden.unbind(1), targets.unbind(1), strict=True)
    return torch.stack([token_nll(head(h), t) for h, t in pieces], 1), bank, losses


def _call(
    model: PreTrainedModel,
    memory: AttachedMemory,
    bank: MemoryBank,
    input_ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    detach: list[bool],
    use: MemoryControl,
    observer: AttentionObserver | None,
    losses: list[Tensor],
    length: int,
    writes: bool,
) -> tuple[Tensor, MemoryBank]:
    """Read segments in one call of the model; their auxiliary losses are appended to `losses`."""
    B, S, T = input_ids.shape
    if bool(starts[:, 0].any()):
        bank = bank.forget(starts[:, 0])
    body = segment_layout(memory.plan, length, input_ids.device, shown=T)
    N = len(body.gather_index)
    embeds = cast(Tensor, model.get_input_embeddings()(input_ids))
    if memory.inserted_tokens is not None:
        learned = memory.inserted_tokens.to(embeds.dtype)
        embeds = torch.cat([embeds, learned.expand(B, S, -1, -1)], 2)[:, :, body.gather_index]
    embeds = embeds.flatten(1, 2)
    places, after = _places(bank.position, starts, lengths, N - T)
    offsets = torch.arange(N, device=input_ids.device)
    stored = (places[..., None] + offsets).where(body.min_length <= lengths[..., None], FREE)

    soft, soft_table = memory.plan.soft, bank.soft
    P = n = 0
    index, attn_mask = offsets[None], None
    if soft is not None and memory.soft_tokens is not None:
        learned, n = memory.soft_tokens.to(embeds.dtype), soft.num_soft_tokens
        soft_table = soft_table or SoftMemory.empty(B, soft.soft_segments or 1, learned)
        slots = soft.slots(soft_table, learned)
        if not writes:  # nothing sees the slots but they themselves
            slots, n = slots[:, :0], 0
        front, real = soft.read(_shown(soft_table, use), learned)
        front, real = _trim(front, real, soft.num_soft_tokens)
        P = front.shape[1]
        embeds = torch.cat([front, embeds, slots], 1)
        index = torch.arange(P + N + n, device=input_ids.device)[None]
        if not bool(real.all()):
            index = index - (~real).sum(1, keepdim=True)
            attn_mask = _soft_mask(real, N + n)
    L = P + N + n
    context = SegmentContext(
        memory.plan,
        bank.layers,
        table=_table(model, embeds, index),
        layout=body,
        prefix=P,
        index=index,
        positions=places[..., None] + torch.arange(-P, L - P, device=places.device).clamp_min(0),
        stored=stored,
        starts=starts,
        detach=detach,
        attn_mask=attn_mask,
        rope_unscaled=getattr(_rotary(model), "attention_scaling", None) == 1,
        windows=memory.windows,
        kernel=choose(
            memory.backend,
            memory.plan,
            embeds.device,
            _compute_dtype(embeds),
            learns=torch.is_grad_enabled(),
        ),
        use=use,
        weights=dict(memory.named_parameters()),
        observer=observer,
        writes=writes,
    )
    base = cast(Any, model.base_model)
    out = base(inputs_embeds=embeds, context=context, use_cache=False).last_hidden_state
    losses += [loss for own in context.losses.values() for loss in own]
    if writes and soft is not None and soft_table is not None:
        soft_table = soft.write(soft_table, out[:, P + N :])
    hidden = out[:, P : P + N] if soft is not None else out
    hidden = hidden.view(B, S, N, -1)
    if N > T:
        hidden = hidden[:, :, body.predicts_next]
    if not writes:
        return hidden, bank
    layers, last = context.written, None
    if memory.plan.needs_surprise:
        surprise = _surprise(model, bank.hidden, hidden[:, 0], input_ids[:, 0], starts[:, 0])
        layers = {i: _revised(memory.plan.layers[i], m, surprise) for i, m in layers.items()}
        last = hidden[torch.arange(B), 0, lengths[:, 0].sub(1).clamp_min(0)]
    return hidden, MemoryBank(after, layers, soft_table, last)


def _revised(plan: LayerPlan, memory: Memory, surprise: Tensor) -> Memory:
    """Let writings look again at the newest segment, whose losses are known."""
    for writing in plan.writings:
        if writing.needs_surprise:
            memory = writing.revise(memory, surprise)
    return memory


@torch.no_grad()
def _surprise(
    model: PreTrainedModel, before: Tensor | None, hidden: Tensor, ids: Tensor, starts: Tensor
) -> Tensor:
    """Return the loss of each token of a segment [B, T], NaN for the first of a document."""
    head, vocabulary = _head(model), model.config.vocab_size
    losses = at_least_float32(hidden.new_full(ids.shape, torch.nan))
    losses[:, 1:] = nll_of(head, hidden[:, :-1], ids[:, 1:], vocabulary)
    if before is not None:
        losses[:, 0] = token_nll(head(before), ids[:, 0]).masked_fill(starts, torch.nan)
    return losses


def _places(
    position: Tensor, starts: Tensor, lengths: Tensor, inserted: int
) -> tuple[Tensor, Tensor]:
    """Return the place of each segment's first token [B, S], and of the next one to come [B].

    Each segment that holds anything has `inserted` tokens beside its text.
    """
    places: list[Tensor] = []
    for start, length in zip(starts.unbind(1), lengths.unbind(1), strict=True):
        position = position.masked_fill(start, 0)
        places.append(position)
        position = position + length + inserted * (length > 0)
    return torch.stack(places, 1), position


def _shown(soft: SoftMemory, use: MemoryControl) -> SoftMemory:
    """Return the summaries that the rows see: their own, or a control."""
    if use == "own":
        return soft
    if use == "off":
        return soft.forget(torch.ones_like(soft.counts, dtype=torch.bool))
    return soft.rows(neighbours(len(soft.counts), soft.counts.device))


def _trim(tokens: Tensor, real: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Drop the leading summaries that no row has."""
    kept = int(real.sum(1).amax()) // n * n
    return tokens[:, tokens.shape[1] - kept :], real[:, real.shape[1] - kept :]


def _soft_mask(real: Tensor, rest: int) -> Tensor:
    """Causal mask [B, 1, L, L] that hides the soft tokens that a row does not have."""
    visible = torch.cat([real, real.new_ones(len(real), rest)], 1)
    mask = causal(visible.shape[1], real.device) & visible[:, None, None, :]
    return mask | torch.eye(visible.shape[1], dtype=torch.bool, device=real.device)


def _compute_dtype(embeds: Tensor) -> torch.dtype:
    """Return the type in which attention is computed: autocast's, or the model's."""
    kind = embeds.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embeds.dtype


def _rotary(model: PreTrainedModel) -> Any:
    """Return the model's own rotary module."""
    return cast(Any, model.base_model).rotary_emb.inner


def _table(model: PreTrainedModel, embeds: Tensor, own: Tensor) -> Any:
    """Return the model's own rotary table as a function of the indices alone.

    The table of the segments' `own` indices, which every layer asks for, is computed once.
    """
    inner = _rotary(model)
    made = inner(embeds, own)

    def table(index: Tensor) -> Table:
        return made if index is own else inner(embeds, index)

    return table
