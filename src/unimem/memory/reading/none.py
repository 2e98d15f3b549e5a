"""memory.reading=none: memory is not looked at."""

from __future__ import annotations

from typing import ClassVar, final

from unimem.memory.option import option
from unimem.memory.reading.base import Reading, Selection, View


@final
@option
class NoReading(Reading):
    """Read nothing from a layer's memory; soft tokens at the input need no reading."""

    searches: ClassVar[bool] = False
    memory_kind: ClassVar[str] = "nothing"

    def select(self, view: View) -> Selection:
        """Choose no slot."""
        return Selection(view.taken.new_zeros(view.taken.shape))
