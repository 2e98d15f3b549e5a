"""memory.injection=layers: the named layers have memory."""

from __future__ import annotations

from typing import Annotated, final

from pydantic import Field

from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class Layers(Injection):
    """Memory in the layers of a list (Memorizing Transformer, UniMix)."""

    indices: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Give the list, in order."""
        return tuple(sorted(set(self.indices)))
