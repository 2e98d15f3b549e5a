"""memory.writing=summary_tokens: the model writes a summary of each segment, in every layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, final

from pydantic import Field

from unimem.memory.option import option
from unimem.memory.rules import Chosen
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class SummaryTokens(LayerWriting):
    """Model forward, layer by layer (Gist, Mu 2023, arXiv 2304.08467; CCM, Kim 2023).

    Behind the text of each segment stand `num_summary` learned tokens, which take places in the
    document like any other and see the segment before them. What they leave behind is their
    un-rotated keys and values in each injected layer. (memory.writing=model_forward keeps what the
    last layer made of them instead, and feeds it back at the input.)
    """

    num_summary: Annotated[int, Field(gt=0)]

    @property
    def num_learned(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Each summary token is its own."""
        return self.num_summary

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse tokens that nothing would train."""
        if not chosen.bptt_segments:
            yield (
                "memory.bptt_segments=0 lets no gradient reach the segment that wrote the summary, "
                "so the summary tokens would learn nothing; set it to 1 or more"
            )

    def inserts(self, length: int) -> tuple[tuple[int, int], ...]:
        """Put them behind the text."""
        return tuple((length, i) for i in range(self.num_summary))

    def count(self, length: int) -> int:
        """The summary."""
        return self.num_summary

    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Leave the summary alone."""
        return memory.append(segment.summary)
