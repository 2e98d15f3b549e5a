"""Notes of the attention that slots and tokens received from a segment.

Shapes: B rows, H query heads, M slots, N tokens.
"""

import torch
from torch import Tensor

from unimem.memory.plan import LayerPlan
from unimem.memory.state import Memory


def heads_noted(note: str, heads: int, kv_heads: int) -> int:
    """Return for how many heads attention is recorded under a note's name: H, G or 1."""
    return {"last": 1, "received_own_segment": heads}.get(note, kv_heads)


def record_attention(
    plan: LayerPlan, state: Memory, tokens: Memory, slots: Tensor | None, own: Tensor
) -> tuple[Memory, Memory]:
    """Note the attention that the row's slots and the segment's tokens received from real tokens.

    slots [B, H, N, M] (None if no slots were visible) and own [B, H, N, N] are attention weights.
    """
    heads, real = tokens.keys.shape[1], tokens.used[:, 0]
    last = (real * torch.arange(1, len(tokens) + 1, device=real.device)).argmax(1)
    for name in plan.observes:

        def got(share: Tensor, name: str = name) -> Tensor:
            if name == "last":
                return share[torch.arange(len(last)), :, last].mean(1, keepdim=True)
            total = (share * real[:, None, :, None]).sum(2)
            if name == "received_own_segment":
                return total
            return total.unflatten(1, (heads, -1)).sum(2)

        tokens = tokens.noted(**{name: got(own)})
        if slots is None or name == "received_own_segment" or not len(state):
            continue
        new = got(slots).to(state.positions.device)
        state = state.noted(**{name: new if name == "last" else state.notes[name] + new})
    return state, tokens
