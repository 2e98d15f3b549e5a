"""What a model with memory weighs, before it reads anything."""

from functools import reduce

import torch
from transformers import PreTrainedModel

from unimem.memory.plan import LayerPlan
from unimem.memory.state import Memory
from unimem.model.attach import attached


def num_parameters(model: PreTrainedModel) -> int:
    """Count the weights, those of memory included; tied ones once."""
    return sum(p.numel() for p in model.parameters())


def state_bytes_per_row(model: PreTrainedModel, longest: int, dtype: torch.dtype) -> int:
    """Give the most that one row remembers while it reads a document of `longest` tokens, in bytes.

    `dtype` is that of keys, values and summaries. Equals the greatest `MemoryBank.bytes_per_row`.
    """
    plan, config = attached(model).plan, model.config
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    slot = 2 * config.num_key_value_heads * size * dtype.itemsize + torch.long.itemsize
    total = sum(_most_slots(layer, plan.segment_length, longest) for layer in plan.layers.values())
    total *= slot
    if plan.soft is not None:
        tokens = plan.soft.soft_segments * plan.soft.num_soft_tokens
        total += tokens * config.hidden_size * dtype.itemsize
    return total


def _most_slots(plan: LayerPlan, segment_length: int, longest: int) -> int:
    """Let a layer's options write and evict slots of one number each, and count."""
    most = 0
    state = Memory.empty(torch.zeros(1, 1, 1, 1))
    for start in range(0, longest, segment_length):
        positions = torch.arange(start, start + segment_length)[None]
        positions = positions.where(positions < longest, -1)
        ones = torch.ones(1, 1, segment_length, 1)
        segment = Memory(ones, ones, positions)
        written = reduce(Memory.append, (writing.write(segment) for writing in plan.writings))
        state = plan.management.evict(state.append(written), len(written))
        most = max(most, len(state))
    return most
