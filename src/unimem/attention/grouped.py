"""The grouped softmax of Landmark Attention (Mohtashami 2023, arXiv 2305.16300, section 3.1).

Tokens of a query's own block compete with the landmarks of the blocks before it. What a landmark
gets is shared out among the tokens of its block by a softmax of their own. In logits: a token of
another block has its own logit, less the log-sum-exp of its block's, plus its landmark's.

Shapes: B rows, H query heads, T queries, M slots, N = M + T keys, K blocks.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unimem.memory.state import Memory

if TYPE_CHECKING:
    from unimem.attention.reference import Weighing


def grouped(weighing: "Weighing", memory: Memory, notes: Mapping[str, Tensor]) -> "Weighing":
    """Return the logits under which one softmax over all tokens is the grouped one.

    Landmarks themselves are not seen. `notes` are those of the segment's tokens.
    """
    slots = weighing.memory.shape[-1]
    logits = torch.cat([weighing.memory, weighing.segment], -1)
    shape = logits.shape
    seen = weighing.seen.expand(shape[0], shape[1], -1, -1)
    visible = torch.cat([weighing.chosen.visible.expand(*shape[:3], slots), seen], -1)
    first, mark = (_noted(name, memory, notes) for name in ("block", "mark"))
    own = first[:, None, None, :] == notes["block"][:, :, :, None]
    mark = (mark > 0)[:, None, None, :]

    begins = torch.ones_like(first, dtype=torch.bool)
    begins[:, 1:] = first[:, 1:] != first[:, :-1]
    block = begins.cumsum(1) - 1
    each = block[:, None, None, :].expand(shape)
    none = logits.new_full((*shape[:3], int(block.max()) + 1), -torch.inf)

    tokens = logits.masked_fill(~visible | mark, -torch.inf)
    highest = none.scatter_reduce(-1, each, tokens.detach(), "amax").clamp_min(-1e30)
    total = torch.zeros_like(none).scatter_add(-1, each, (tokens - highest.gather(-1, each)).exp())
    inside = total.clamp_min(1e-30).log() + highest
    marks = logits.masked_fill(~(visible & mark), -torch.inf)
    marked = none.scatter_reduce(-1, each, marks, "amax").gather(-1, each)
    through = logits - inside.gather(-1, each) + marked.clamp_min(-1e30)
    logits = logits.where(own, through)
    visible = visible & ~mark & (own | (marked > -torch.inf))

    read = visible[..., :slots]
    live = read if weighing.chosen.all_live else weighing.chosen.live
    return weighing._replace(
        memory=logits[..., :slots],
        chosen=weighing.chosen._replace(visible=read, live=live),
        segment=logits[..., slots:],
        seen=visible[..., slots:],
    )


def _noted(name: str, memory: Memory, notes: Mapping[str, Tensor]) -> Tensor:
    """Return a note of slots and tokens together [B, N]."""
    if not len(memory):
        return notes[name][:, 0]
    return torch.cat([memory.notes[name], notes[name]], -1)[:, 0]
