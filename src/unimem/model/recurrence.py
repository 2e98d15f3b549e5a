"""Segments in order: the bank of one comes out, and goes into the next.

A layer's memory depends only on that layer's keys and values of earlier segments. Without soft
tokens one model call may therefore span many segments, with the loop over them inside attention,
and equals the recurrence exactly. Soft tokens carry the last layer's output into the next
segment's input, and surprise is what the last layer makes of a segment: then each segment is a
call of its own.

Shapes: B rows, S segments, T text tokens of a segment, N of them with what writing inserted, P and
n soft tokens before and behind, L = P + N + n, E hidden size, V vocabulary.
"""

from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from unimem.memory.plan import LayerPlan
from unimem.memory.state import FREE, Memory, MemoryBank, SoftMemory
from unimem.model.attach import AttachedMemory, attached
from unimem.model.attention import Call, Use, Watch, causal, neighbours
from unimem.model.backend import choose
from unimem.model.body import segment_body
from unimem.model.rotary import Table


class Reading(NamedTuple):
    """What reading documents gives."""

    logits: Tensor
    """[B, N, V]: the prediction of the token after each."""
    nll: Tensor
    """[B, N]: negative log-likelihood of each token in nats, NaN where nothing predicts it."""
    bank: MemoryBank
    """What is remembered; reading on from it continues the documents."""


def read(
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    bank: MemoryBank | None = None,
    use: Use = "own",
    segments_per_call: int = 8,
) -> Reading:
    """Read documents `input_ids` [B, N] of any length, by segments, from empty memory or `bank`.

    Every call begins a new segment, and a last segment that is short is remembered like the
    others. Gradient is cut at the start of a call. The first token of a document has no
    prediction: its NLL is NaN. `use` shows the rows their own memory, none (`off`), or their
    neighbour's (`other`).

    Raises ValueError if the model has no memory attached or `input_ids` are not [B, N] with N > 0.
    """
    if input_ids.ndim != 2 or not input_ids.numel():
        raise ValueError(f"input_ids must be [B, N] with N > 0, got {list(input_ids.shape)}")
    length = attached(model).plan.segment_length
    B, N = input_ids.shape
    if bank is None:
        bank = MemoryBank.empty(B, input_ids.device)
    last = bank.hidden
    pieces: list[Tensor] = []
    whole = N // length * length
    for ids in (input_ids[:, :whole], input_ids[:, whole:]):
        if not ids.shape[1]:
            continue
        segments = ids.view(B, -1, min(length, ids.shape[1]))
        S, T = segments.shape[1:]
        hidden, bank = run(
            model,
            bank,
            segments,
            starts=ids.new_zeros(B, S, dtype=torch.bool),
            lengths=ids.new_full((B, S), T),
            use=use,
            segments_per_call=segments_per_call,
            before=len(pieces) * (whole // length),
        )
        pieces.append(hidden.flatten(1, 2))
    hidden = torch.cat(pieces, 1)
    head = cast(torch.nn.Module, model.get_output_embeddings())
    logits = head(hidden)
    nll = hidden.new_full((B, N), torch.nan, dtype=torch.float32)
    nll[:, 1:] = token_nll(logits[:, :-1], input_ids[:, 1:])
    if last is not None:
        nll[:, 0] = token_nll(head(last), input_ids[:, 0])
    return Reading(logits, nll, replace(bank, hidden=hidden[:, -1]))


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats of targets [...] under logits [..., V]; 0 for target -100."""
    flat = F.cross_entropy(
        logits.flatten(0, -2).float(), targets.flatten(), reduction="none", ignore_index=-100
    )
    return flat.view(targets.shape)


def run(
    model: PreTrainedModel,
    bank: MemoryBank,
    input_ids: Tensor,
    *,
    starts: Tensor,
    lengths: Tensor,
    use: Use = "own",
    segments_per_call: int | None = None,
    before: int = 0,
    watch: Watch | None = None,
    losses: list[Tensor] | None = None,
) -> tuple[Tensor, MemoryBank]:
    """Read S segments of each row and give their final hidden states [B, S, T, E] and the bank.

    input_ids [B, S, T]; starts [B, S]: the segment begins a document, and the row forgets;
    lengths [B, S]: its real tokens, the rest is padding (never remembered). Gradient reaches
    `bptt_segments` segments back from the last segment of each group of `bptt_segments` + 1; groups
    are counted from `before` segments ahead of these. `watch` is told what is read of memory. What
    options want minimised beside the loss of the text is put into `losses`, a number for each
    layer and segment that has one.
    """
    memory = attached(model)
    S = input_ids.shape[1]
    step = 1 if memory.plan.one_by_one else segments_per_call or S
    hiddens: list[Tensor] = []
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
            watch,
            losses,
        )
        hiddens.append(hidden)
    return torch.cat(hiddens, 1), bank


def _call(
    model: PreTrainedModel,
    memory: AttachedMemory,
    bank: MemoryBank,
    input_ids: Tensor,
    starts: Tensor,
    lengths: Tensor,
    detach: list[bool],
    use: Use,
    watch: Watch | None,
    losses: list[Tensor] | None,
) -> tuple[Tensor, MemoryBank]:
    """Read segments in one call of the model; there is one segment if they are one by one."""
    B, S, T = input_ids.shape
    if bool(starts[:, 0].any()):
        bank = bank.forget(starts[:, 0])
    body = segment_body(memory.plan, T, input_ids.device)
    N = len(body.source)
    embeds = cast(Tensor, model.get_input_embeddings()(input_ids))
    if memory.inserted_tokens is not None:
        learned = memory.inserted_tokens.to(embeds.dtype)
        embeds = torch.cat([embeds, learned.expand(B, S, -1, -1)], 2)[:, :, body.source]
    embeds = embeds.flatten(1, 2)
    places, after = _places(bank.position, starts, lengths, N - T)
    offsets = torch.arange(N, device=input_ids.device)
    stored = (places[..., None] + offsets).where(body.needs <= lengths[..., None], FREE)

    soft, soft_table = memory.plan.soft, bank.soft
    P = n = 0
    index, seen = offsets[None], None
    if soft is not None and memory.soft_tokens is not None:
        learned, n = memory.soft_tokens.to(embeds.dtype), soft.num_soft_tokens
        soft_table = soft_table or SoftMemory.empty(B, soft.soft_segments or 1, learned)
        slots = soft.slots(soft_table, learned)
        front, real = soft.read(_shown(soft_table, use), learned)
        front, real = _trim(front, real, n)
        P = front.shape[1]
        embeds = torch.cat([front, embeds, slots], 1)
        index = torch.arange(P + N + n, device=input_ids.device)[None]
        if not bool(real.all()):
            index = index - (~real).sum(1, keepdim=True)
            seen = _soft_mask(real, N + n)
    L = P + N + n
    call = Call(
        memory.plan,
        bank.layers,
        table=_table(model, embeds, index),
        body=body,
        prefix=P,
        index=index,
        positions=places[..., None] + torch.arange(-P, L - P, device=places.device).clamp_min(0),
        stored=stored,
        starts=starts,
        detach=detach,
        seen=seen,
        neutral=getattr(_rotary(model), "attention_scaling", None) == 1,
        windows=memory.windows,
        kernel=choose(memory.backend, memory.plan, embeds.device, _compute_dtype(embeds)),
        use=use,
        weights=dict(memory.named_parameters()),
        watch=watch,
    )
    base = cast(Any, model.base_model)
    out = base(inputs_embeds=embeds, memory=call, use_cache=False).last_hidden_state
    if losses is not None:
        losses += [loss for own in call.losses.values() for loss in own]
    if soft is not None and soft_table is not None:
        soft_table = soft.write(soft_table, out[:, P + N :])
    hidden = out[:, P : P + N] if soft is not None else out
    hidden = hidden.view(B, S, N, -1)
    if N > T:
        hidden = hidden[:, :, body.speaks]
    layers, last = call.written, None
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
    """Give the loss of each token of a segment [B, T], NaN for the first of a document."""
    head = cast(torch.nn.Module, model.get_output_embeddings())
    losses = hidden.new_full(ids.shape, torch.nan, dtype=torch.float32)
    losses[:, 1:] = token_nll(head(hidden[:, :-1]), ids[:, 1:])
    if before is not None:
        losses[:, 0] = token_nll(head(before), ids[:, 0]).masked_fill(starts, torch.nan)
    return losses


def _places(
    position: Tensor, starts: Tensor, lengths: Tensor, inserted: int
) -> tuple[Tensor, Tensor]:
    """Give the place of each segment's first token [B, S], and of the next one to come [B].

    Each segment that holds anything has `inserted` tokens beside its text.
    """
    places: list[Tensor] = []
    for start, length in zip(starts.unbind(1), lengths.unbind(1), strict=True):
        position = position.masked_fill(start, 0)
        places.append(position)
        position = position + length + inserted * (length > 0)
    return torch.stack(places, 1), position


def _shown(soft: SoftMemory, use: Use) -> SoftMemory:
    """Give the summaries that the rows see: their own, or a control."""
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
    """Give the type in which attention is computed: autocast's, or the model's."""
    kind = embeds.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embeds.dtype


def _rotary(model: PreTrainedModel) -> Any:
    """Give the model's own rotary module."""
    return cast(Any, model.base_model).rotary_emb.inner


def _table(model: PreTrainedModel, embeds: Tensor, own: Tensor) -> Any:
    """Give the model's own rotary table as a function of the indices alone.

    The table of the segments' `own` indices, which every layer asks for, is computed once.
    """
    inner = _rotary(model)
    made = inner(embeds, own)

    def table(index: Tensor) -> Table:
        return made if index is own else inner(embeds, index)

    return table
