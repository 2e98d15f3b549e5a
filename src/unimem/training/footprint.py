"""Number of parameters and bytes of state of a model with memory."""

import torch
from transformers import PreTrainedModel

from unimem.attention.kernels.base import accumulation_dtype
from unimem.attention.record_attention import heads_noted
from unimem.memory.plan import LayerPlan
from unimem.memory.state import FREE, Memory, Segment
from unimem.model.attach import attached
from unimem.model.context import segment_layout
from unimem.model.supported import head_size


def num_parameters(model: PreTrainedModel) -> int:
    """Return the number of weights with the weights of memory; tied weights count once."""
    return sum(p.numel() for p in model.parameters())


def state_bytes_per_row(model: PreTrainedModel, longest: int, dtype: torch.dtype) -> int:
    """Return the largest state of one row in bytes while it reads a document of `longest` tokens.

    `dtype` is the type of keys, values and summaries. Equals the maximum of
    `MemoryBank.bytes_per_row` over the document.
    """
    plan, config = attached(model).plan, model.config
    total = 0
    measured: list[tuple[LayerPlan, int]] = []
    for layer in plan.layers.values():
        alike = [size for other, size in measured if other.options == layer.options]
        if not alike:
            alike = [_most_bytes(layer, model, longest, dtype)]
            measured.append((layer, alike[0]))
        total += alike[0]
    if plan.soft is not None:
        kept = plan.soft.soft_segments or -(-longest // plan.segment_length)
        total += kept * plan.soft.num_soft_tokens * config.hidden_size * dtype.itemsize
    return total


def _most_bytes(plan: LayerPlan, model: PreTrainedModel, longest: int, dtype: torch.dtype) -> int:
    """Return the largest state of a layer: its options write and evict heads of size 1."""
    memory, heads = attached(model), model.config.num_key_value_heads
    query_heads = model.config.num_attention_heads
    length, size = memory.plan.segment_length, head_size(model)
    weights = {
        name: torch.zeros(shape)
        for option in plan.options
        for name, shape in option.weight_shapes(heads, 1).items()
    }
    most = place = 0
    state = Memory.empty(torch.zeros(1, heads, 1, 1))
    for start in range(0, longest, length):
        shown = min(length, longest)
        body = segment_layout(memory.plan, length, torch.device("cpu"), shown)
        real = body.min_length <= longest - start
        positions = (place + torch.arange(len(real)))[None].where(real, FREE)
        place += len(real)
        ones = torch.ones(1, heads, len(real), 1)
        tokens = Memory(ones, ones, positions)
        tokens = plan.annotate(tokens, body.inserted)
        got = {
            name: torch.zeros(1, heads_noted(name, query_heads, heads), len(real))
            for name in plan.observes
        }
        segment = Segment(tokens.noted(**got), body.text_at, body.inserted_at, ones, weights)
        state = plan.write(state, segment)
        slots = (state.positions, *state.notes.values())
        bytes_held = 2 * state.keys.numel() * size * dtype.itemsize
        bytes_held += sum(t.numel() * t.element_size() for t in slots)
        fixed = sum(writing.state_numbers(heads, size) for writing in plan.writings)
        bytes_held += fixed * accumulation_dtype(dtype).itemsize
        most = max(most, bytes_held)
        if plan.management.bounded and len(state) == plan.most_slots(longest, length) > 0:
            break  # it is full
    return most
