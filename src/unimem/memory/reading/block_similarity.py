"""memory.reading=block_similarity: whole blocks of slots, found by a few of their keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, final

from pydantic import Field

from unimem.memory.blocks import blocks, representatives
from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection, View
from unimem.memory.rules import Chosen
from unimem.words import counted

if TYPE_CHECKING:
    from torch import Tensor


@final
@option
class BlockSimilarity(Reading):
    """Block reading: the `topk_blocks` blocks whose representatives match best are read whole.

    Blocks are groups of `block_size` tokens counted from place `block_start`, unless writing marks
    its own; a block begins at `block_start` in either case. A block is represented by its landmark
    if it has one (Landmark Attention, Mohtashami 2023, arXiv 2305.16300), else by the mean of its
    keys (LongMem, Wang 2023, arXiv 2306.07174), or, for each query head, of the `representatives`
    of them that got the most attention of that head from their own segment (InfLLM, Xiao 2024,
    arXiv 2402.04617). `retrieval=query` searches for each query and head; `retrieval=segment`, as
    InfLLM does, once for all of them by their mean score, so that later queries of the segment have
    a say in what the earlier ones read. Each block chosen brings `neighbours` blocks on either side
    (EM-LLM, Fountas 2024, arXiv 2407.09450).

    A block of which another reading shows a slot (with `retrieval=segment`, to any query of the
    segment) is no candidate: its other slots are read too. They are what InfLLM calls the global
    remainder, the tokens behind the window that are in no complete block yet. No gradient enters
    what this reading shows unless `grad_topk` is set.
    """

    whole_blocks: ClassVar[bool] = True

    block_size: Annotated[int, Field(gt=0)]
    topk_blocks: Annotated[int, Field(gt=0)]
    block_start: Annotated[int, Field(ge=0)] = 0
    representatives: Annotated[int, Field(gt=0)] | None = None
    retrieval: Literal["query", "segment"] = "query"
    neighbours: Annotated[int, Field(ge=0)] = 0
    grad_topk: bool = False

    @property
    def observes(self) -> frozenset[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The attention from the own segment, if representatives are chosen by it."""
        return frozenset() if self.representatives is None else frozenset({"received_own_segment"})

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse heads that hold different tokens, and blocks parted from their landmarks."""
        if self.block_start and any(writing.landmarks for writing in chosen.writings):
            yield (
                f"memory.block_start={self.block_start} would begin a block within one that has a "
                "landmark behind it; with memory.writing=landmark set it to 0"
            )
        if chosen.management.per_head:
            yield (
                "memory.reading=block_similarity reads blocks that all heads share, but "
                "memory.management lets each head keep other tokens; choose another of the two"
            )

    def remarks(self, chosen: Chosen) -> Iterable[str]:
        """Warn that a choice for the whole segment looks ahead, and which gaps are filled."""
        wanted = self.topk_blocks * self.block_size
        held = chosen.management.most(wanted)
        if held < wanted:
            yield (
                f"memory.topk_blocks={self.topk_blocks} of memory.block_size={self.block_size} are "
                f"{counted(wanted, 'slot')}, more than memory ever holds "
                f"({counted(held, 'slot')}): every block is read"
            )
        if self.retrieval == "segment":
            yield (
                "memory.retrieval=segment: which blocks a token reads depends on later tokens of "
                "its segment too; losses are those of the method, not of a strictly causal model"
            )
        for reading in chosen.readings:
            if reading.memory_kind == "slots" and not (reading is self or reading.gapless):
                yield (
                    f"memory.reading=block_similarity reads what {reading.label} leaves out of a "
                    "block too: a block of which it shows a slot is read whole"
                )

    def select(self, view: View) -> Selection:
        """Score blocks by their representatives, and choose."""
        memory, scores = view.memory, view.scores
        block, _ = blocks(memory, self.block_size, self.block_start)
        count = int(block.max()) + 1
        share = representatives(memory, block, self.representatives, scores.dtype)[:, :, None, :]
        taken, real = view.taken, view.real[:, None, :, None]
        used = memory.valid[:, None, None, :]
        if self.retrieval == "segment":
            number = real.sum(2, keepdim=True).clamp_min(1)
            scores = (scores * real).sum(2, keepdim=True) / number
            taken = ((taken & real) | ~used).any((1, 2), keepdim=True)

        def by_block(x: Tensor) -> Tensor:
            """Sum what is said of slots over each block [..., count]."""
            each = block[:, None, None, :].expand_as(x)
            return x.new_zeros(*x.shape[:3], count).scatter_add(-1, each, x)

        score = by_block(scores * share)
        if self.retrieval == "segment":
            score = score.mean(1, keepdim=True)
        touched = by_block((taken & used).long()) > 0
        candidate = ~touched & (by_block(used.long()) > 0)
        best = score.masked_fill(~candidate, float("-inf")).topk(min(self.topk_blocks, count), -1)
        chosen = taken.new_zeros(score.shape).scatter(-1, best.indices, True)
        chosen = self._widened(chosen & candidate) & candidate
        read = chosen | touched
        each = block[:, None, None, :].expand(*read.shape[:3], -1)
        return Selection(read.gather(-1, each), self.grad_topk)

    def _widened(self, chosen: Tensor) -> Tensor:
        """Add the neighbours of the chosen blocks."""
        widened = chosen.clone()
        for step in range(1, self.neighbours + 1):
            widened[..., step:] |= chosen[..., :-step]
            widened[..., :-step] |= chosen[..., step:]
        return widened
