"""memory.reading=similarity: the slots that match the query best."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Search, Selection, View
from unimem.memory.rules import Chosen
from unimem.words import counted


@final
@option
class Similarity(Reading):
    """Similarity reading: each query and head reads its `topk` best slots.

    Source: Memorizing Transformers (Wu 2022, arXiv 2203.08913). Best is by the attention logit
    itself, under the position scheme in use, so a top-k of the memory's size is reading all; or,
    with `metric=cosine`, by the cosine of query and key as attention turns them (of the un-rotated
    ones under memory.positions=none), of which those below `threshold` are not read (Extended Mind,
    Klett 2023, arXiv 2406.02332). As in the UniMem authors' code no gradient
    enters the slots read this way unless `grad_topk` is set. `crossbatch` is as in
    memory.reading=all.
    """

    topk: Annotated[int, Field(ge=0)]
    metric: Literal["dot", "cosine"] = "dot"
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = None
    grad_topk: bool = False
    crossbatch: Annotated[int, Field(ge=0)] = 0

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse a threshold on attention logits, which have no scale."""
        if self.threshold is not None and self.metric != "cosine":
            yield (
                f"memory.threshold={self.threshold} is of cosines, but memory.metric="
                f"{self.metric}; set memory.metric=cosine, or leave the threshold out"
            )

    def remarks(self, chosen: Chosen) -> Iterable[str]:
        """Warn that a topk of at least the number of slots chooses nothing."""
        held = chosen.management.most(self.topk)
        if held < self.topk:
            yield (
                f"memory.topk={self.topk} is more than memory ever holds "
                f"({counted(held, 'slot')}): every slot is read, as with memory.reading=all"
            )

    @property
    def search(self) -> Search:
        """The best slots."""
        return Search(self.topk, self.metric == "cosine", self.threshold, self.grad_topk)

    def select(self, view: View) -> Selection:
        """Choose the best matches among the slots that are left."""
        scores = view.cosines() if self.metric == "cosine" else view.scores
        left = scores.masked_fill(view.taken, float("-inf"))
        best = left.topk(min(self.topk, len(view.memory)), -1).indices
        visible = view.taken.new_zeros(scores.shape).scatter(-1, best, True)
        if self.threshold is not None:
            visible &= scores >= self.threshold
        return Selection(visible, self.grad_topk)
