"""memory.injection=single: one layer has memory."""

from __future__ import annotations

from typing import Annotated, final

from pydantic import Field

from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class SingleLayer(Injection):
    """Memory in the one layer `injection_layer` (the paper's injection study)."""

    layer: Annotated[int, Field(ge=0)]

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Give that layer."""
        return (self.layer,)
