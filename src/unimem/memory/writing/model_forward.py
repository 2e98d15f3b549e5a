"""memory.writing=model_forward: the model writes a summary into soft tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.writing.base import InputWriting

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import SoftMemory


@final
@option
class ModelForward(InputWriting):
    """Model forward (RMT, Bulatov 2022, arXiv 2207.06881; UniMix).

    A segment is read as [kept summaries | text | newest summary]; the model's output at the last
    `num_soft_tokens` places, after the final norm and so at its scale, is the new summary. The
    last `soft_segments` summaries are kept. Before there is one, the learned soft tokens stand in
    both places, as in the RMT paper; with `seed_read=False` nothing stands before the first
    segment, as in the UniMem authors' code, and the learned tokens then hardly train.
    """

    num_soft_tokens: Annotated[int, Field(gt=0)]
    soft_segments: Annotated[int, Field(gt=0)] = 1
    seed_read: bool = True

    def read(self, soft: SoftMemory, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Give the kept summaries, oldest first, with the learned tokens where there are none."""
        batch, kept, n, hidden = soft.states.shape
        none = soft.counts == 0
        states = soft.states.clone()
        states[:, -1] = learned.where(none[:, None, None], soft.states[:, -1])
        real = soft.counts + none.long() if self.seed_read else soft.counts
        age = soft.counts.new_ones(kept).cumsum(0).flip(0)
        valid = (age <= real[:, None]).repeat_interleave(n, 1)
        return states.view(batch, kept * n, hidden), valid

    def write(self, soft: SoftMemory, summary: Tensor) -> SoftMemory:
        """Keep the newest `soft_segments` summaries."""
        return soft.append(summary)
