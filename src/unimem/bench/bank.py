"""A bank as it is after a document's first tokens, without reading them."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from unimem.attention.record_attention import heads_noted
from unimem.bench.inputs import Source, draw_rows
from unimem.memory.bank import MemoryBank, SoftMemory
from unimem.memory.plan import LayerPlan, MemoryPlan
from unimem.memory.state import FREE, Memory, Segment
from unimem.model.attach import attached
from unimem.model.context import segment_layout
from unimem.model.segments import run
from unimem.model.supported import head_size


def random_ids(vocabulary: int, *shape: int, seed: int) -> Tensor:
    """Return token ids, the same for the same seed."""
    return torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def filled_bank(
    model: PreTrainedModel,
    source: Source,
    *,
    rows: int,
    size: int,
    seed: int,
    dtype: torch.dtype | None = None,
) -> MemoryBank:
    """Return the bank after `size` tokens of each document, as the attached memory keeps them.

    Layers write and evict keys of `source` and random values, in order, as if a model had computed
    them; notes of attention are random. What the last layer makes of a segment (soft tokens) is of
    one segment that the model reads, all summaries alike. Keys and values are of `dtype`, or of the
    weights' own. Detached; a bank of nothing for a size of 0.
    """
    memory, device = attached(model), model.device
    bank = MemoryBank.empty(rows, device)
    if not size:
        return bank
    soft = hidden = None
    if memory.plan.one_by_one:
        length = memory.plan.segment_length
        ids = random_ids(model.config.vocab_size, rows, 1, length, seed=seed).to(device)
        lengths = torch.full((rows, 1), length, device=device)
        starts = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        _, read, _ = run(model, bank, ids, starts=starts, lengths=lengths)
        hidden = read.hidden
        if read.soft is not None and memory.plan.soft is not None:
            kept = -(-size // length)
            kept = min(kept, memory.plan.soft.soft_segments or kept)
            states = read.soft.states[:, -1:].repeat(1, kept, 1, 1)
            soft = SoftMemory(states, torch.full_like(read.soft.counts, kept))
    layers = dict[int, Memory]()
    position = torch.full_like(bank.position, size)
    for layer, plan in memory.plan.layers.items():
        like = torch.empty(rows, size, dtype=dtype or model.dtype, device=device)
        layers[layer], end = _written(model, plan, source, like, seed * 101 + layer)
        position = torch.full_like(position, end)
    return MemoryBank(position, layers, soft, hidden).detach()


def _written(
    model: PreTrainedModel, plan: LayerPlan, source: Source, like: Tensor, seed: int
) -> tuple[Memory, int]:
    """Let a layer's options write and evict, and give its memory and the next token's place.

    `like` [B, M] says how many rows, how many tokens, of what type and where.
    """
    rows, size = like.shape
    config, memory = model.config, attached(model)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    step = size if _at_once(plan) else memory.plan.segment_length
    lengths = [step] * (size // step)
    if size % step:
        lengths.insert(0, size % step)
    bodies = {length: segment_layout(memory.plan, length, model.device) for length in set(lengths)}
    total = sum(len(bodies[length].gather_index) for length in lengths)
    keys, _ = draw_rows(
        source,
        rows,
        heads=heads,
        kv_heads=kv_heads,
        slots=total,
        queries=1,
        size=head_size(model),
        seed=seed,
        like=like,
    )
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(keys.shape, generator=random, dtype=torch.float32).to(like)
    state, place = Memory.empty(keys), 0
    weights = _own_weights(memory.layers, plan.layer)
    for length in lengths:
        body = bodies[length]
        there = slice(place, place + len(body.gather_index))
        places = torch.arange(total, device=model.device)[there].expand(rows, -1)
        tokens = Memory(keys[:, :, there], values[:, :, there], places)
        tokens = plan.annotate(tokens, body.inserted)
        tokens = tokens.noted(**_attention(plan, tokens, heads, random))
        asked = keys.new_zeros(rows, heads, len(tokens), keys.shape[3])
        segment = Segment(tokens, body.text_at, body.inserted_at, asked, weights)
        state = plan.write(state, segment)
        place += len(tokens)
    return state, place


def _at_once(plan: LayerPlan) -> bool:
    """Whether a text written as one segment leaves what it leaves segment by segment."""
    direct = all(w.every_token and not w.needs_surprise for w in plan.writings)
    return direct and not plan.observes and plan.management.oldest_first


def _attention(
    plan: LayerPlan, tokens: Memory, heads: int, random: torch.Generator
) -> dict[str, Tensor]:
    """Make up the attention that the options want noted of each token, of H query heads."""
    rows, kv_heads, count = tokens.keys.shape[:3]
    return {
        name: torch.rand(rows, heads_noted(name, heads, kv_heads), count, generator=random).to(
            tokens.keys.device
        )
        for name in plan.observes
    }


def _own_weights(layers: torch.nn.ModuleDict, layer: int) -> dict[str, Tensor]:
    """Return what memory adds to a layer's weights, by the names that its options gave."""
    return dict(layers[str(layer)].named_parameters()) if str(layer) in layers else {}


def slots_held(plan: MemoryPlan, bank: MemoryBank) -> int:
    """Return how many slots the fullest row of the fullest layer holds."""
    return max(
        (
            int((bank.layers[i].places != FREE).sum(-1).max())
            for i in plan.layers
            if i in bank.layers
        ),
        default=0,
    )
