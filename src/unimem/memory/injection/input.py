"""memory.injection=input: soft tokens enter with the embeddings."""

from __future__ import annotations

from typing import ClassVar, final

from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class Input(Injection):
    """Memory at the input (RMT): the soft tokens then act in all layers."""

    at_input: ClassVar[bool] = True
    at_layers: ClassVar[bool] = False

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return nothing: no layer has a memory of its own."""
        return ()
