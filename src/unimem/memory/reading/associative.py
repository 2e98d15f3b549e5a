"""memory.reading=associative: the matrix of an associative memory answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.option import option
from unimem.memory.reading.base import StateReading
from unimem.memory.tensors import at_least_float32, full_precision

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class Associative(StateReading):
    """Associative reading (Infini-attention, Munkhdalai 2024, arXiv 2404.07143).

    Each query reads s(q) M / (s(q) z), with s = elu + 1 and un-rotated, from the matrix that
    memory.writing=associative adds up.
    """

    memory_kind: ClassVar[str] = "matrix"

    def answer(
        self, query: Tensor, memory: Memory, weights: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Return what the matrix [B, G, D, D + 1] holds for each query; its last column is z."""
        matrix, query = memory.recurrent["matrix"], at_least_float32(query)
        features = query.clamp_max(0).expm1().where(query < 0, query) + 1
        with full_precision(query):
            rows = features.reshape(*matrix.shape[:2], -1, query.shape[3])
            found = (rows @ matrix).view(*query.shape[:3], -1)
        weight = found[..., -1:]
        known = weight > 0
        return found[..., :-1] / weight.where(known, 1), known
