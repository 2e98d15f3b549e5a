"""A segment's text, and the learned tokens that writing inserts between it.

Shapes: T text tokens, N tokens in all.
"""

from functools import lru_cache
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


def segment_body(
    plan: MemoryPlan, length: int, device: torch.device, shown: int | None = None
) -> Body:
    """Lay out a segment of `length` text tokens, or as much of it as its first `shown` ones need.

    In `source` the learned tokens stand behind the text tokens that are shown.
    """
    writing = plan.inserting
    shown = length if shown is None else shown
    if writing is None:
        return _laid_out((), False, shown, device)
    inserts = tuple(token for token in writing.inserts(length) if token[0] <= shown)
    return _laid_out(inserts, writing.speaks, shown, device)


@lru_cache(64)  # each copy of a list to a GPU waits for the GPU
@torch.inference_mode(False)  # what training takes from the cache may have been made in evaluation
def _laid_out(
    inserts: tuple[tuple[int, int], ...], speaks_last: bool, length: int, device: torch.device
) -> Body:
    """Lay out `length` text tokens and `inserts`, pairs of the text before and the token's number.

    `speaks_last`: an inserted token predicts the text after it, in place of the token before it.
    """
    # sorted by how much text stands before; text token i follows what stands behind i tokens
    tokens = [(after, 0, length + which) for after, which in inserts]
    tokens = sorted([*((i, 1, i) for i in range(length)), *tokens], key=lambda token: token[:2])
    text_at = [place for place, (_, is_text, _) in enumerate(tokens) if is_text]
    inserted_at = [place for place, (_, is_text, _) in enumerate(tokens) if not is_text]
    speaks = [*text_at]
    if speaks_last:
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
