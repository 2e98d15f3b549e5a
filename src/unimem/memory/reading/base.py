"""Reading: which slots may each query see, and does gradient flow into them?

Shapes: B rows, H query heads, G key-value heads, T queries, M slots, D head size. Masks may have 1
in place of H.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, final

from unimem.memory.option import Option
from unimem.memory.tensors import full_precision, repeat_kv, to_unit_length

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.positions.base import Frame, Positions
    from unimem.memory.state import Memory


class Selection(NamedTuple):
    """The slots that each query sees."""

    visible: Tensor
    """Which slots each query sees [B, H, T, M]."""
    gradient: Tensor | bool = True
    """Whether gradient enters keys and values of visible slots: for all, or a mask [B, H, T, M],
    with 1 in place of T if it is the same for all queries. Queries always get their gradient."""
    multiplicity: Tensor | None = None
    """How often a slot counts in the softmax [B, H, T, M]; None: once."""

    def __or__(self, other: tuple[Any, ...]) -> Selection:
        assert isinstance(other, Selection)
        gradient: Tensor | bool = True
        if self.gradient is not True or other.gradient is not True:
            gradient = (self.visible & self.gradient) | (other.visible & other.gradient)
        counts = [x for x in (self.multiplicity, other.multiplicity) if x is not None]
        multiplicity = None
        if counts:
            once = counts[0].new_ones(())
            mine, others = (once if x is None else x for x in (self[2], other[2]))
            multiplicity = mine.where(self.visible, others)
        return Selection(self.visible | other.visible, gradient, multiplicity)

    def without(self, taken: Tensor) -> Selection:
        """Return the selection without the slots `taken` [B, H, T, M]."""
        return self._replace(visible=self.visible & ~taken)

    @property
    def grad_mask(self) -> Tensor:
        """`gradient` as a mask that broadcasts to [B, H, T, M]."""
        if isinstance(self.gradient, bool):
            return self.visible.new_full((1, 1, 1, 1), self.gradient)
        return self.gradient


@dataclass(frozen=True, kw_only=True)
class View:
    """What a reading chooses from."""

    memory: Memory
    """The slots; their keys are not rotated."""
    query: Tensor
    """Queries [B, H, T, D], scaled and not rotated."""
    frame: Frame
    """The positions of the queries."""
    positions: Positions
    """The position scheme, which says how attention rotates queries and keys."""
    taken: Tensor
    """Slots that are free or read already [B, H, T, M]; a selection of them is ignored."""
    logits: Tensor | None
    """Attention logits of all slots [B, H, T, M] for a reading that `searches`, else None."""
    layer: int
    """The index of the layer."""

    @property
    def queries(self) -> Tensor:
        """The positions of the queries in their documents [B, T]."""
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
        """The attention logits of all slots [B, H, T, M], as constants.

        Raises ValueError if they are not computed.
        """
        if self.logits is None:
            raise ValueError(
                f"view.scores has no logits: {self.positions.label} needs the selection first, or "
                "the reading's class says searches = False"
            )
        return self.logits.detach()

    def rotated(self) -> tuple[Tensor, Tensor]:
        """Return rotated queries [B, H, T, D] and keys [B, G, M, D], as constants.

        Their products are `scores`. For readings that score by another function of rotated keys,
        as the bounds of a page. Raises ValueError for a position scheme that rotates a key
        differently for different queries.
        """
        if not self.positions.one_rotation:
            raise ValueError(
                f"{self.positions.label} rotates a key differently for different queries; a "
                "reading that uses view.rotated() needs memory.positions=zero, true or none"
            )
        (rotation,) = self.positions.rotations(self.memory, self.frame)
        query = self.frame.rotate(self.query.detach(), rotation.queries)
        return query, self.frame.rotate(self.memory.keys.detach(), rotation.keys)

    def cosines(self) -> Tensor:
        """Return cosines of queries and keys as attention rotates them [B, H, T, M], as constants.

        Under memory.positions=zero the query is rotated and the key is not, as in Extended Mind;
        under `none` neither is.
        """
        query, keys = to_unit_length(self.query), to_unit_length(self.memory.keys)
        with full_precision(query):
            return self.positions.score(query, keys, self.memory, self.frame) / self.frame.gain


class Search(NamedTuple):
    """A top-k search, described so that it can be done without materialising all logits."""

    topk: int
    """Slots that each query and head reads, among those not read yet."""
    cosine: bool
    """Whether slots are ranked by the cosine of rotated query and key, else by the logit."""
    threshold: float | None
    """The least cosine of a slot that is read; None: no threshold."""
    gradient: bool
    """Whether gradient enters the slots that are found."""


class Reading(Option, ABC):
    """Memory reading (UniMem, section 3). Readings are combined by `|`; a slot is read once."""

    searches: ClassVar[bool] = True
    """Whether the selection depends on content (`view.scores`); such readings select last."""

    by_place: ClassVar[bool] = False
    """Whether the selection depends on positions only, as `links` gives it for any two tokens."""

    gapless: bool = False
    """Whether each query sees the oldest slots, the newest, or both, and no others."""

    whole_blocks: ClassVar[bool] = False
    """Whether a block with a slot that any reading selects is read whole."""

    up_to_newest: bool = False
    """Whether a query that sees a slot sees all newer ones."""

    memory_kind: ClassVar[str] = "slots"
    """What it reads: `slots`, `nothing`, or another kind, as a writing of that kind leaves it."""

    crossbatch: int = 0
    """How many other rows' memories a row reads too, in training."""

    @property
    def search(self) -> Search | None:
        """The top-k search that equals `select`; None if there is none."""
        return None

    @property
    def reach(self) -> tuple[int, int] | None:
        """The numbers of oldest and newest slots that queries can see; None: all slots.

        It holds for a memory whose slots are in the order of their positions, all different. The
        fast form leaves out the slots between.
        """
        return None

    @abstractmethod
    def select(self, view: View) -> Selection:
        """Return the slots that each query sees; slots that are `view.taken` are left out later."""

    def choose(self, view: View) -> Selection:
        """Return `select` without the slots that are free or read already."""
        return self.select(view).without(view.taken)

    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Return which tokens see which by their places, or how often.

        queries [B, 1, T, 1] and keys [B, 1 or heads, 1, M] are places in the document; gives
        [B, 1 or heads, T, M]. Only of a reading that is `by_place`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not choose by place")

    @property
    def parts(self) -> tuple[Reading, ...]:
        """The readings that this one combines."""
        return (self,)

    @property
    def band(self) -> int | None:
        """The window w, if queries see the oldest slots and those at distance 1 to w, no others."""
        return None

    @property
    def content_free(self) -> tuple[Reading, ...]:
        """The parts that read slots by position only."""
        return tuple(p for p in self.parts if p.memory_kind == "slots" and not p.searches)

    @property
    def search_for(self) -> Search | None:
        """The search of the only part that searches; None if there is no such search."""
        searching = [part for part in self.parts if part.searches]
        search = searching[0].search if len(searching) == 1 else None
        return search if search is not None and search.topk else None

    def __or__(self, other: Reading) -> Reading:
        return CombinedReading(self.parts + other.parts)


class PlaceReading(Reading):
    """A reading by position; a slot may count several times. Gradient enters its slots."""

    searches: ClassVar[bool] = False
    by_place: ClassVar[bool] = True

    @abstractmethod
    def links(self, queries: Tensor, keys: Tensor, heads: int, layer: int) -> Tensor:
        """Return which tokens see which by their places, or how often; see `Reading.links`."""

    def select(self, view: View) -> Selection:
        """Select the linked slots."""
        queries, places = view.queries[:, None, :, None], repeat_kv(view.memory.places, view.heads)
        linked = self.links(queries, places[:, :, None, :], view.heads, view.layer)
        return Selection(linked > 0, True, linked if linked.dtype.is_floating_point else None)


class StateReading(Reading):
    """A reading that answers from states of fixed size, `Memory.recurrent`, without a softmax.

    A learned gate for each head (memory.fusion=gated) weighs the answer against attention on slots
    and segment.
    """

    searches: ClassVar[bool] = False

    @abstractmethod
    def answer(
        self, query: Tensor, memory: Memory, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return the answers [B, H, T, D] to un-rotated queries, and which queries have one.

        The latter is [B, 1 or H, 1 or T, 1]; `weights` are declared by the layer's options. Called
        once `memory.recurrent` holds anything.
        """

    def select(self, view: View) -> Selection:
        """Select no slot."""
        return Selection(view.taken.new_zeros(view.taken.shape))


@final
class CombinedReading(Reading):
    """Several readings as one: each selects among the slots that earlier ones have not read."""

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
        chosen = first.choose(view)
        for part in others:
            chosen |= part.choose(replace(view, taken=view.taken | chosen.visible))
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
