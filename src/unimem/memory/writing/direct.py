"""memory.writing=direct: keys and values as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.option import option
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class Direct(LayerWriting):
    """Direct writing: the un-rotated keys and the values that the layer computed of the text."""

    every_token: ClassVar[bool] = True

    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Leave the text as it is."""
        return memory.append(segment.text)
