"""memory.reading=associative: the matrix of an associative memory answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, final

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection, View
from unimem.memory.rules import Chosen


@final
@option
class Associative(Reading):
    """Associative reading (Infini-attention, Munkhdalai 2024, arXiv 2404.07143).

    Each query reads s(q) M / (s(q) z), with s = elu + 1 and un-rotated, from what
    memory.writing=associative added up. There is no softmax to share with other tokens: a gate for
    each head weighs the answer against all that is read otherwise.
    """

    searches: ClassVar[bool] = False
    memory_kind: ClassVar[str] = "matrix"

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse a softmax."""
        if chosen.fusion != "gated":
            yield (
                f"memory.fusion={chosen.fusion} has no place for memory.reading=associative, which "
                "answers without a softmax; set memory.fusion=gated"
            )

    def select(self, view: View) -> Selection:
        """Choose no slot."""
        return Selection(view.taken.new_zeros(view.taken.shape))
