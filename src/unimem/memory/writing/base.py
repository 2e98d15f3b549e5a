"""Writing: what does a finished segment leave behind?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory, SoftMemory


class Writing(ABC):  # noqa: B024 - the unit decides the methods
    """Memory writing (UniMem, section 3)."""


class LayerWriting(Writing):
    """A writing whose unit is the keys and values of an injected layer."""

    @abstractmethod
    def write(self, segment: Memory) -> Memory:
        """Turn a finished segment into the slots that it leaves behind."""


class InputWriting(Writing):
    """A writing whose unit is soft tokens, fed back at the model's input."""

    num_soft_tokens: int
    soft_segments: int

    @abstractmethod
    def read(self, soft: SoftMemory, learned: Tensor) -> tuple[Tensor, Tensor]:
        """Give what stands before the next segment: tokens [B, P, E], and which are real [B, P]."""

    @abstractmethod
    def write(self, soft: SoftMemory, summary: Tensor) -> SoftMemory:
        """Keep the summary [B, n, E] of a finished segment."""
