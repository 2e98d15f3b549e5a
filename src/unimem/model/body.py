"""A segment's text, and the learned tokens that writing inserts between it.

Shapes: T text tokens, N tokens in all.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unimem.memory.plan import MemoryPlan


class Body(NamedTuple):
    """How a segment's T text tokens and what writing inserts stand in order, N in all."""

    source: Tensor
    """Where each comes from in [text | learned tokens] [N]."""
    inserted: Tensor
    """Which were inserted [N]."""
    needs: Tensor
    """How many real text tokens a row must have for each to be real [N]."""
    text_at: Tensor
    """Where the text stands [T]."""
    inserted_at: Tensor
    """Where the others stand [N - T]."""
    speaks: Tensor
    """Whose output predicts the token after each text token [T]."""


def segment_body(plan: MemoryPlan, length: int, device: torch.device) -> Body:
    """Lay out a segment of `length` text tokens."""
    writing = plan.inserting
    inserts = () if writing is None else writing.inserts(length)
    # sorted by how much text stands before; text token i follows what stands behind i tokens
    tokens = [(after, 0, length + which) for after, which in inserts]
    tokens = sorted([*((i, 1, i) for i in range(length)), *tokens], key=lambda token: token[:2])
    source = torch.tensor([token[2] for token in tokens], device=device)
    inserted = source >= length
    needs = torch.tensor([after + is_text for after, is_text, _ in tokens], device=device)
    text_at, inserted_at = (~inserted).nonzero()[:, 0], inserted.nonzero()[:, 0]
    speaks = text_at
    if writing is not None and writing.speaks:
        last = torch.tensor([after - 1 for after, _ in inserts], device=device)
        speaks = text_at.clone()
        speaks[last] = inserted_at
    return Body(source, inserted, needs, text_at, inserted_at, speaks)
