"""The layout of a segment: its text, and the learned tokens that writing inserts.

Shapes: T text tokens, N tokens in all.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from unimem.memory.plan import MemoryPlan


class SegmentLayout(NamedTuple):
    """The order of a segment's T text tokens and the tokens that writing inserts, N in all."""

    gather_index: Tensor
    """The index of each token in [text | learned tokens] [N]."""
    inserted: Tensor
    """Which tokens were inserted [N]."""
    min_length: Tensor
    """The number of real text tokens a row must have for each token to be real [N]."""
    text_at: Tensor
    """The indices of the text tokens [T]."""
    inserted_at: Tensor
    """The indices of the inserted tokens [N - T]."""
    predicts_next: Tensor
    """The token whose output predicts the token after each text token [T]."""


def segment_layout(
    plan: MemoryPlan, length: int, device: torch.device, shown: int | None = None
) -> SegmentLayout:
    """Lay out a segment of `length` text tokens, or as much of it as its first `shown` ones need.

    In `gather_index` the learned tokens come after the text tokens that are shown.
    """
    writing = plan.inserting
    shown = length if shown is None else shown
    if writing is None:
        return _laid_out((), False, shown, device)
    inserts = tuple(token for token in writing.inserts(length) if token[0] <= shown)
    return _laid_out(inserts, writing.predicts_next, shown, device)


@lru_cache(64)  # each copy of a list to a GPU waits for the GPU
@torch.inference_mode(False)  # what training takes from the cache may have been made in evaluation
def _laid_out(
    inserts: tuple[tuple[int, int], ...],
    inserted_predicts: bool,
    length: int,
    device: torch.device,
) -> SegmentLayout:
    """Lay out `length` text tokens and `inserts`, pairs of the text before and the token's number.

    `inserted_predicts`: an inserted token predicts the text after it, not the token before it.
    """
    # sorted by how much text stands before; text token i follows what stands behind i tokens
    tokens = [(after, 0, length + which) for after, which in inserts]
    tokens = sorted([*((i, 1, i) for i in range(length)), *tokens], key=lambda token: token[:2])
    text_at = [place for place, (_, is_text, _) in enumerate(tokens) if is_text]
    inserted_at = [place for place, (_, is_text, _) in enumerate(tokens) if not is_text]
    predicts_next = [*text_at]
    if inserted_predicts:
        for place in inserted_at:
            if (after := tokens[place][0]) > 0:
                predicts_next[after - 1] = place

    def put(numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=device)

    return SegmentLayout(
        gather_index=put([source for _, _, source in tokens]),
        inserted=put([1 - is_text for _, is_text, _ in tokens]).bool(),
        min_length=put([after + is_text for after, is_text, _ in tokens]),
        text_at=put(text_at),
        inserted_at=put(inserted_at),
        predicts_next=put(predicts_next),
    )
