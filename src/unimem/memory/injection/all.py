"""memory.injection=all: every layer has memory."""

from __future__ import annotations

from typing import final

from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class AllLayers(Injection):
    """Memory in every layer (Transformer-XL, Longformer)."""

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return all."""
        return tuple(range(num_layers))
