"""Writing: what does a finished segment leave behind?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from unimem.memory.option import Option

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.bank import SoftMemory
    from unimem.memory.state import Memory, Segment


class Writing(Option, ABC):
    """Memory writing (UniMem, section 3)."""

    at_input: ClassVar[bool] = False
    """Whether its unit is soft tokens, fed back at the model's input."""

    memory_kind: ClassVar[str] = "slots"
    """What it leaves behind in a layer: `slots`, or the kind of state of a `StateReading`."""

    every_token: ClassVar[bool] = False
    """Whether it leaves one slot for each token of the text and nothing else."""

    num_learned: int = 0
    """How many learned tokens it inserts copies of, at the model's input."""

    landmarks: ClassVar[bool] = False
    """Whether some of its slots stand for their block."""


class LayerWriting(Writing):
    """A writing into the memory of an injected layer."""

    predicts_next: ClassVar[bool] = False
    """Whether what it inserts predicts the next token in place of the text token before it."""

    needs_surprise: ClassVar[bool] = False
    """Whether it wants to know the loss of each token, by `revise`."""

    def inserts(self, length: int) -> tuple[tuple[int, int], ...]:
        """Return what stands in a segment of `length` text tokens beside them, in order.

        Each is a pair: how many text tokens stand before it, and which learned token it is.
        """
        return ()

    def annotate(self, tokens: Memory, inserted: Tensor) -> Memory:
        """Note of a segment's tokens what attention must know already while it is read."""
        return tokens

    def count(self, length: int) -> int:
        """Return how many slots a segment of `length` text tokens leaves behind."""
        return length

    def state_numbers(self, kv_heads: int, head_size: int) -> int:
        """Return how many numbers it keeps of each row in `Memory.recurrent`, in a layer."""
        return 0

    @abstractmethod
    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Return `memory` with what a finished segment leaves behind; new slots stand last."""

    def revise(self, memory: Memory, surprise: Tensor) -> Memory:
        """Look again at the slots of the newest segment, whose losses [B, T] are known by now.

        A loss is in nats and NaN for the first token of a document; called if `needs_surprise`.
        """
        return memory


class InputWriting(Writing):
    """A writing whose unit is soft tokens, fed back at the model's input."""

    at_input: ClassVar[bool] = True

    num_soft_tokens: int
    soft_segments: int | None

    @abstractmethod
    def read(self, soft: SoftMemory, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return the tokens before the next segment [B, P, E], and which are real [B, P]."""

    @abstractmethod
    def slots(self, soft: SoftMemory, learned: Tensor) -> Tensor:
        """Return what stands behind the next segment, where its summary is written [B, n, E]."""

    @abstractmethod
    def write(self, soft: SoftMemory, summary: Tensor) -> SoftMemory:
        """Keep the summary [B, n, E] of a finished segment."""
