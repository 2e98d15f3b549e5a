"""What every option is: a frozen, keyword-only dataclass that checks itself.

Options hold budgets, never state: memory is a value that goes in and comes out. They import no
torch, so that a configuration is checked before anything heavy is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.rules import Chosen


option = partial(
    dataclass,
    frozen=True,
    kw_only=True,
    config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False),
)

Fusion = Literal["joint", "gated", "grouped"]
Local = Literal["causal", "reading"]


class Option:
    """An option of a dimension, or a position scheme."""

    list_fields: ClassVar[frozenset[str]] = frozenset()
    """Budgets that are lists by themselves; a list of lists then gives one for each layer."""

    observes: ClassVar[frozenset[str]] = frozenset()
    """The attention that must be noted on each slot for this option, by name of the note.

    `received`: all attention received from text so far, summed over queries and over the query
    heads of each key-value head. `received_own_segment`: attention received within the slot's own
    segment from each query head, summed over queries. `last`: attention received from the newest
    segment's last query, the mean over all heads."""

    merges: ClassVar[bool] = False
    """Whether what it leaves in memory stands for several tokens, so that none of them can be
    hidden without the others."""

    @property
    def label(self) -> str:
        """The option as it is chosen: `memory.reading=all`."""
        dimension, name = re.split(r"[.:]", type(self).__module__)[-2:]
        return f"memory.{dimension}={name}"

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Return, a sentence each, why this option cannot work beside the others."""
        return ()

    def weight_shapes(self, kv_heads: int, head_size: int) -> Mapping[str, tuple[int, ...]]:
        """Name the weights that this option adds to each injected layer, and their shapes."""
        return {}

    def remarks(self, chosen: Chosen) -> Iterable[str]:
        """Return, a sentence each, what a user should know about this option's numbers."""
        return ()

    def initialise(self, weights: Mapping[str, Tensor]) -> None:
        """Set these weights, in place, to what training starts from; they come as zeros."""
