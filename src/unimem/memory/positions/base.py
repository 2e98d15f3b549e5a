"""Position schemes: where memory keys stand for the rotary embedding when they are read.

No dimension of its own in UniMem, but every number depends on it. Tokens of the segment itself
stand where they are, unless the scheme is `after_choice`.

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from unimem.memory.option import Option
from unimem.memory.tensors import repeat_kv

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


class Frame(Protocol):
    """Where the queries of a segment stand.

    Rotary indices restart with each segment: its first token, soft or text, has index 0.
    """

    @property
    def index(self) -> Tensor:
        """Rotary indices of the queries [B or 1, T]."""
        ...

    @property
    def positions(self) -> Tensor:
        """Places of the queries in their documents [B, T]; soft tokens in front stand at the
        segment's first place, those behind count on."""
        ...

    @property
    def origin(self) -> Tensor:
        """Rotary index of the document's first token [B, 1], negative once it lies in memory."""
        ...

    @property
    def limit(self) -> int:
        """The segment length."""
        ...

    @property
    def real(self) -> Tensor:
        """Which queries are not padding [B, T]."""
        ...

    @property
    def gain(self) -> Tensor | float:
        """How many times greater the dot product of two turned vectors is; 1 for most models."""
        ...

    def rotate(self, x: Tensor, index: Tensor | int) -> Tensor:
        """Rotate x [B, heads, N, D] to one index, [B or 1, N] or [B, heads, N]."""
        ...

    def qk(
        self, query: Tensor, query_index: Tensor | int, keys: Tensor, key_index: Tensor | int
    ) -> Tensor:
        """Turn queries [B, H, T, D] and keys [B, G, M, D] to rotary indices, and multiply.

        Indices are [B or 1, N], [B, heads, N], or one for all. Gives unscaled logits [B, H, T, M].
        """
        ...


class Rotation(NamedTuple):
    """How queries and memory keys are turned towards each other before they are multiplied."""

    queries: Tensor | int
    """Rotary indices of the queries: [B or 1, T], [B, heads, T], or one for all."""
    keys: Tensor | int
    """Rotary indices of the keys: [B or 1, M], [B, heads, M], or one for all."""
    where: Tensor | None = None
    """The pairs that it holds for [B, 1 or G or H, T, M]; None for all that are left."""


class Positions(Option, ABC):
    """A position scheme of memory keys."""

    after_choice: ClassVar[bool] = False
    """Whether it must know what a query sees; then no reading can search by logits. Such a scheme
    places the tokens of the segment too."""

    rearranges: ClassVar[bool] = False
    """Whether slots stand at other places once they are chosen. `rotations` is then asked for the
    choice, without `visible`, and for attention, with it."""

    one_rotation: ClassVar[bool] = True
    """Whether all pairs of a query and a key are turned alike, so that keys can be searched."""

    orderless: ClassVar[bool] = False
    """Whether every slot stands at the same place."""

    @abstractmethod
    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Return how queries and keys of `memory` are rotated: by the first rotation that holds.

        visible [B, 1 or H, T, M] says which slots each query sees, of a scheme that `rearranges`
        them or comes `after_choice`. The latter gets the slots of the memory and behind them the
        tokens of the segment as one.
        """

    def score(
        self,
        query: Tensor,
        keys: Tensor,
        memory: Memory,
        frame: Frame,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Return the unscaled logits [B, H, T, M] of un-rotated queries on `keys` of `memory`.

        `visible` is as in `rotations`.
        """
        *special, rest = self.rotations(memory, frame, visible)
        logits = frame.qk(query, rest.queries, keys, rest.keys)
        for rotation in reversed(special):
            assert rotation.where is not None, "only the last rotation holds for all pairs"
            near = frame.qk(query, rotation.queries, keys, rotation.keys)
            logits = near.where(repeat_kv(rotation.where, query.shape[1]), logits)
        return logits
