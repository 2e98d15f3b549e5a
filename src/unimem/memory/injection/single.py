"""memory.injection=single: one layer has memory."""

from __future__ import annotations

from typing import final

from unimem.memory.depth import Place, layer_at
from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class SingleLayer(Injection):
    """Memory in the one layer `injection_layer` (the paper's injection study).

    An index from 0, a negative one from the last layer, or a fraction of the depth.
    """

    layer: Place

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Give that layer."""
        return (layer_at(self.layer, num_layers),)
