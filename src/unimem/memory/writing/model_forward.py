"""memory.writing=model_forward: the model writes a summary into soft tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.writing.base import InputWriting

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.bank import SoftMemory


@final
@option
class ModelForward(InputWriting):
    """Model forward (RMT, Bulatov 2022, arXiv 2207.06881; AutoCompressor; UniMix).

    A segment is read as [kept summaries | text | slots]; the model's output at the slots, the last
    `num_soft_tokens` places, after the final norm and so at its scale, is the new summary. The
    last `soft_segments` summaries are kept; null for all. In the slots stands the newest summary,
    as in RMT, or, with `write_slots=learned`, always the learned soft tokens, as in AutoCompressor
    (Chevalier 2023, arXiv 2305.14788). Before there is a summary, the learned tokens stand in both
    places, as in the RMT paper; with `seed_read=False` nothing stands before the first segment, as
    in AutoCompressor and in the UniMem authors' code, where they then hardly train.
    """

    num_soft_tokens: Annotated[int, Field(gt=0)]
    soft_segments: Annotated[int, Field(gt=0)] | None = 1
    seed_read: bool = True
    write_slots: Literal["newest", "learned"] = "newest"

    def read(self, soft: SoftMemory, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return the kept summaries, oldest first, with the learned tokens where there are none."""
        batch, kept, n, hidden = soft.states.shape
        none = soft.counts == 0
        states = soft.states.clone()
        states[:, -1] = learned.where(none[:, None, None], soft.states[:, -1])
        real = soft.counts + none.long() if self.seed_read else soft.counts
        age = soft.counts.new_ones(kept).cumsum(0).flip(0)
        valid = (age <= real[:, None]).repeat_interleave(n, 1)
        return states.view(batch, kept * n, hidden), valid

    def slots(self, soft: SoftMemory, learned: Tensor) -> Tensor:
        """Return the newest summary, or the learned tokens."""
        none = (soft.counts == 0)[:, None, None]
        if self.write_slots == "learned":
            none = none | ~none
        return learned.where(none, soft.states[:, -1])

    def write(self, soft: SoftMemory, summary: Tensor) -> SoftMemory:
        """Keep the newest `soft_segments` summaries."""
        return soft.append(summary, self.soft_segments)
