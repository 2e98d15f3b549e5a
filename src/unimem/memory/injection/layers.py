"""memory.injection=layers: the named layers have memory."""

from __future__ import annotations

from typing import final

from unimem.memory.depth import Places, layers_at
from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class Layers(Injection):
    """Memory in the layers of a list (Memorizing Transformer, UniMix).

    `indices` has indices from 0, negative ones from the last layer, fractions of the depth (0.5 is
    the first layer of the upper half, 1.0 the last layer), and the names upper_half and lower_half.
    """

    indices: Places

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the layers, in order."""
        return layers_at(self.indices, num_layers)
