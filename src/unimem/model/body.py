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
    text_at = [place for place, (_, is_text, _) in enumerate(tokens) if is_text]
    inserted_at = [place for place, (_, is_text, _) in enumerate(tokens) if not is_text]
    speaks = [*text_at]
    if writing is not None and writing.speaks:
        for place in inserted_at:
            if (after := tokens[place][0]) > 0:
                speaks[after - 1] = place

    def put(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return Body(
        source=put([source for _, _, source in tokens]),
        inserted=put([1 - is_text for _, is_text, _ in tokens]).bool(),
        needs=put([after + is_text for after, is_text, _ in tokens]),
        text_at=put(text_at),
        inserted_at=put(inserted_at),
        speaks=put(speaks),
    )
