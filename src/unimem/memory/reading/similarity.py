"""memory.reading=similarity: the slots that match the query best."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Similarity(Reading):
    """Similarity reading: each query and head reads its `topk` best slots.

    Source: Memorizing Transformers (Wu 2022, arXiv 2203.08913). Best is by the attention logit
    itself, under the position scheme in use, so a top-k of the memory's size is reading all. As in
    the UniMem authors' code no gradient enters the slots read this way unless `grad_topk` is set.
    """

    searches: ClassVar[bool] = True

    topk: Annotated[int, Field(ge=0)]
    grad_topk: bool = False

    def select(self, scores: Tensor, positions: Tensor, memory: Memory, taken: Tensor) -> Selection:
        """Choose the largest logits among the slots that are left."""
        left = scores.detach().masked_fill(taken, float("-inf"))
        best = left.topk(min(self.topk, len(memory)), -1).indices
        chosen = taken.new_zeros(scores.shape).scatter(-1, best, True) & ~taken
        return Selection(chosen, chosen if self.grad_topk else chosen.new_zeros(()))
