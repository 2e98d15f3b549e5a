"""Reading: which slots may each query see, and does gradient flow into them?

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size. Masks may have 1
in place of H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple, final

from unimem.memory.option import Option
from unimem.memory.tensors import full_precision, repeat_kv, to_unit_length

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.positions.base import Frame, Positions
    from unimem.memory.state import Memory


class Selection(NamedTuple):
    """The slots that each query sees: `visible` [B, H, T, M] and, of those, `grad_mask`.

    Keys and values of slots that are not live are constants to the gradient; the query always
    gets its gradient. live has 1 in place of T if it is the same for all queries. `multiplicity`
    [B, H, T, M] says how often a slot counts in the softmax; None for once.
    """

    visible: Tensor
    grad_mask: Tensor
    multiplicity: Tensor | None = None

    def __or__(self, other: tuple[Tensor | None, ...]) -> Selection:
        assert isinstance(other, Selection)
        visible, multiplicity = self.visible | other.visible, None
        counts = [
            multiplicity
            for multiplicity in (self.multiplicity, other.multiplicity)
            if multiplicity is not None
        ]
        if counts:
            once = counts[0].new_ones(())
            mine, others = (
                once if t is None else t for t in (self.multiplicity, other.multiplicity)
            )
            multiplicity = mine.where(self.visible, others)
        if self.all_gradient and other.all_gradient:
            return Selection(visible, visible, multiplicity)
        grad_mask = (self.grad_mask & self.visible) | (other.grad_mask & other.visible)
        return Selection(visible, grad_mask, multiplicity)

    @property
    def all_gradient(self) -> bool:
        """Whether gradient enters all that is visible; known from how the selection was made."""
        return self.grad_mask is self.visible


@dataclass(frozen=True, kw_only=True)
class View:
    """What a reading chooses from.

    query [B, H, T, D] and `memory` are un-rotated, `frame` and `positions` say how attention turns
    them; taken [B, H, T, M] are the slots that are free or already read; logits [B, H, T, M] are
    the attention logits of all slots under the position scheme, None if that scheme needs the
    choice first.
    """

    memory: Memory
    query: Tensor
    frame: Frame
    positions: Positions
    taken: Tensor
    logits: Tensor | None
    layer: int

    @property
    def queries(self) -> Tensor:
        """The places of the queries in their documents [B, T]."""
        return self.frame.positions

    @property
    def real(self) -> Tensor:
        """Which queries are not padding [B, T]."""
        return self.frame.real

    @property
    def heads(self) -> int:
        """The number of query heads, H."""
        return self.query.shape[1]

    @property
    def scores(self) -> Tensor:
        """The logits, as constants."""
        assert self.logits is not None, "validation refuses a search under such a position scheme"
        return self.logits.detach()

    def cosines(self) -> Tensor:
        """Cosines of queries and keys as attention turns them [B, H, T, M], as constants.

        So the query is rotated and the key is not under memory.positions=zero, as in Extended Mind;
        neither is under `none`.
        """
        query, keys = to_unit_length(self.query), to_unit_length(self.memory.keys)
        with full_precision(query):
            return self.positions.score(query, keys, self.memory, self.frame) / self.frame.gain


class Search(NamedTuple):
    """A choice of the best slots, described so that it can be made without writing all logits.

    Each query and head reads its `topk` best slots, of those that are left, by the attention logit
    or by the `cosine` of query and key as attention turns them; none whose measure is below
    `threshold`.
    """

    topk: int
    cosine: bool
    threshold: float | None
    grad_mask: bool
    """Whether gradient enters what is chosen."""


class Reading(Option, ABC):
    """Memory reading (UniMem, section 3). Readings unite with `|`; a slot is read once."""

    searches: ClassVar[bool] = False
    """Whether the choice depends on content; such readings choose last, from what is left."""

    by_place: ClassVar[bool] = False
    """Whether the choice depends on places alone, so that `links` says it for any two tokens."""

    gapless: bool = False
    """Whether each query sees the oldest slots, the newest, or both, and no others."""

    whole_blocks: ClassVar[bool] = False
    """Whether each block of which anything is read is read whole, beside other readings too."""

    up_to_newest: bool = False
    """Whether a query that sees a slot sees all newer ones."""

    unit: ClassVar[str] = "slots"
    """What it reads: `slots`, or the `matrix` of an associative memory."""

    crossbatch: int = 0
    """How many other rows' memories a row reads too, in training."""

    @property
    def search(self) -> Search | None:
        """What a reading that `searches` looks for; None if only `select` can say."""
        return None

    @property
    def reach(self) -> tuple[int, int] | None:
        """How many of the oldest slots all queries see, and of the newest any can; None for all.

        A promise for a memory whose slots stand in the order of their places, no two at one. It
        lets attention leave out what lies between.
        """
        return None

    @abstractmethod
    def select(self, view: View) -> Selection:
        """Choose slots for each query."""

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Return which tokens see which by their places, or how often.

        queries [B, 1, T, 1] and keys [B, 1 or heads, 1, M] are places in the document; gives
        [B, 1 or heads, T, M]. Only of a reading that is `by_place`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not choose by place")

    @property
    def parts(self) -> tuple[Reading, ...]:
        """The readings that this one unites."""
        return (self,)

    @property
    def band(self) -> int | None:
        """The window w, if beside the oldest slots queries see just those at distance 1 to w."""
        return None

    @property
    def content_free(self) -> tuple[Reading, ...]:
        """Those of its parts that read slots without looking at content."""
        return tuple(p for p in self.parts if p.unit == "slots" and not p.searches)

    @property
    def search_for(self) -> Search | None:
        """What its only part that searches looks for; None if there is none or only it can say."""
        searching = [part for part in self.parts if part.searches]
        search = searching[0].search if len(searching) == 1 else None
        return search if search is not None and search.topk else None

    def __or__(self, other: Reading) -> Reading:
        return CombinedReading(self.parts + other.parts)


class PlaceReading(Reading):
    """A reading that chooses by place; a slot may count several times. Gradient flows."""

    by_place: ClassVar[bool] = True

    @abstractmethod
    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Return which tokens see which by their places, or how often; see `Reading.links`."""

    def select(self, view: View) -> Selection:
        """Choose the linked slots that are left."""
        queries, places = view.queries[:, None, :, None], repeat_kv(view.memory.places, view.heads)
        multiplicity = self.links(queries, places[:, :, None, :], view.heads, view.layer)
        visible = (multiplicity > 0) & ~view.taken
        return Selection(
            visible, visible, multiplicity if multiplicity.dtype.is_floating_point else None
        )


@final
class CombinedReading(Reading):
    """Several readings as one: each chooses among the slots that those before it left."""

    def __init__(self, parts: Iterable[Reading]):
        self._parts = tuple(sorted(_distinct(parts), key=lambda part: part.searches))
        assert self._parts

        self.crossbatch = max(part.crossbatch for part in self._parts)

    @property
    def parts(self) -> tuple[Reading, ...]:
        """The distinct readings, content-free ones first."""
        return self._parts

    def select(self, view: View) -> Selection:
        """Choose in turn, content-free readings first."""
        first, *others = self._parts
        chosen = first.select(view)
        for part in others:
            chosen |= part.select(replace(view, taken=view.taken | chosen.visible))
        return chosen

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Return how often tokens see each other under the first reading that links them."""
        multiplicity, *others = (part.links(queries, keys, heads, layer) for part in self._parts)
        for other in others:
            if multiplicity.dtype.is_floating_point or other.dtype.is_floating_point:
                multiplicity = multiplicity.float().where(multiplicity > 0, other.float())
            else:
                multiplicity = multiplicity | other
        return multiplicity


def _distinct(parts: Iterable[Reading]) -> list[Reading]:
    """Name each once; options with lists cannot be hashed."""
    found: list[Reading] = []
    for part in parts:
        if part not in found:
            found.append(part)
    return found
