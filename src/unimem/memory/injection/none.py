"""memory.injection=none: no layer has memory."""

from __future__ import annotations

from typing import ClassVar, final

from unimem.memory.injection.base import Injection
from unimem.memory.option import option


@final
@option
class NoInjection(Injection):
    """No memory in any layer."""

    at_layers: ClassVar[bool] = False

    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return nothing."""
        return ()
