"""Injection: which layers have memory?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from unimem.memory.option import Option


class Injection(Option, ABC):
    """Memory injection (UniMem, section 3). Layers count from 0, as in `model.model.layers`."""

    at_input: ClassVar[bool] = False
    """Whether soft tokens enter with the embeddings."""

    at_layers: ClassVar[bool] = True
    """Whether layers have a memory of their own."""

    @abstractmethod
    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Return the injected layers of a model with `num_layers` layers."""
