"""Injection: which layers have memory?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class Injection(ABC):
    """Memory injection (UniMem, section 3). Layers count from 0, as in `model.model.layers`."""

    at_input: ClassVar[bool] = False
    """Whether soft tokens enter with the embeddings."""

    @abstractmethod
    def layers(self, num_layers: int) -> tuple[int, ...]:
        """Give the injected layers of a model with `num_layers` layers."""
