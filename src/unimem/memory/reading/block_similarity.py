"""memory.reading=block_similarity: whole blocks of slots, found by a few of their keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from unimem.memory.blocks import blocks, representatives
from unimem.memory.option import Chosen, option
from unimem.memory.reading.base import Reading, Selection, View

if TYPE_CHECKING:
    from torch import Tensor


@final
@option
class BlockSimilarity(Reading):
    """Block reading: the `topk_blocks` blocks whose representatives match best are read whole.

    Blocks are aligned groups of `block_size` tokens, unless writing marks its own. A block is
    represented by its landmark if it has one (Landmark Attention, Mohtashami 2023, arXiv
    2305.16300), else by the mean of its keys (LongMem, Wang 2023, arXiv 2306.07174), or of the
    `representatives` of them that got the most attention from their own segment (InfLLM, Xiao 2024,
    arXiv 2402.04617). `retrieval=query` searches for each query and head; `retrieval=segment`, as
    InfLLM does, once for all of them by their mean score, so that later queries of the segment have
    a say in what the earlier ones read. Each block chosen brings `neighbours` blocks on either side
    (EM-LLM, Fountas 2024, arXiv 2407.09450). A block of which a slot is read anyway is no
    candidate. No gradient enters unless `grad_topk` is set.
    """

    searches: ClassVar[bool] = True

    block_size: Annotated[int, Field(gt=0)]
    topk_blocks: Annotated[int, Field(gt=0)]
    representatives: Annotated[int, Field(gt=0)] | None = None
    retrieval: Literal["query", "segment"] = "query"
    neighbours: Annotated[int, Field(ge=0)] = 0
    grad_topk: bool = False

    @property
    def observes(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The attention from the own segment, if representatives are chosen by it."""
        return frozenset() if self.representatives is None else frozenset({"home"})

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse heads that hold different tokens: a block is one for all."""
        if chosen.management.per_head:
            yield (
                "memory.reading=block_similarity reads blocks that all heads share, but "
                "memory.management lets each head keep other tokens; choose another of the two"
            )

    def remarks(self, chosen: Chosen) -> Iterable[str]:
        """Say that a choice for the whole segment looks ahead."""
        if self.retrieval == "segment":
            yield (
                "memory.retrieval=segment: which blocks a token reads depends on later tokens of "
                "its segment too; losses are those of the method, not of a strictly causal model"
            )

    def select(self, view: View) -> Selection:
        """Score blocks by their representatives, and choose."""
        memory, scores = view.memory, view.scores
        block, _ = blocks(memory, self.block_size)
        count = int(block.max()) + 1
        weight = representatives(memory, block, self.representatives)[:, None, None, :]
        index = block[:, None, None, :]
        taken, real = view.taken, view.real[:, None, :, None]
        if self.retrieval == "segment":
            number = real.sum(2, keepdim=True).clamp_min(1)
            scores = (scores * real).sum((1, 2), keepdim=True) / number
            taken = ((taken & real) | ~memory.valid[:, None, None, :]).any(2, keepdim=True)
            taken = taken.any(1, keepdim=True)
        shape = (*scores.shape[:3], count)
        each = index.expand_as(scores)
        score = scores.new_zeros(shape).scatter_add(-1, each, scores * weight)
        # a block that nothing stands in, or of which something is read, is no candidate
        open_slots = (~taken).expand_as(scores)
        used = memory.valid[:, None, None, :].expand_as(scores)
        left = scores.new_zeros(shape).scatter_add(-1, each, open_slots.to(scores.dtype))
        size = scores.new_zeros(shape).scatter_add(-1, each, used.to(scores.dtype))
        candidate = (left == size) & (size > 0)
        best = score.masked_fill(~candidate, float("-inf")).topk(min(self.topk_blocks, count), -1)
        chosen = candidate.new_zeros(shape).scatter(-1, best.indices, True) & candidate
        chosen = self._widened(chosen) & candidate
        visible = chosen.gather(-1, each) & ~view.taken
        return Selection(visible, visible if self.grad_topk else visible.new_zeros(()))

    def _widened(self, chosen: Tensor) -> Tensor:
        """Add the neighbours of the chosen blocks."""
        wide = chosen.clone()
        for step in range(1, self.neighbours + 1):
            wide[..., step:] |= chosen[..., :-step]
            wide[..., :-step] |= chosen[..., step:]
        return wide
