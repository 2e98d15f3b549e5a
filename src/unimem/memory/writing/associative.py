"""memory.writing=associative: keys and values are added up in one matrix."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.option import option
from unimem.memory.tensors import at_least_float32, full_precision
from unimem.memory.writing.base import LayerWriting

if TYPE_CHECKING:
    from unimem.memory.state import Memory, Segment


@final
@option
class Associative(LayerWriting):
    """Associative writing (Infini-attention, Munkhdalai 2024, arXiv 2404.07143).

    For each key-value head, M += s(K)^T V and z += sum of s(K), with s = elu + 1 and un-rotated
    keys, in float32 at least. With `delta` what the memory would have answered is subtracted from
    V first (the delta rule; 0 while the memory is empty).
    """

    merges: ClassVar[bool] = True

    memory_kind: ClassVar[str] = "matrix"

    delta: bool = False

    def count(self, length: int) -> int:
        """None: the matrix has its size from the start."""
        return 0

    def state_numbers(self, kv_heads: int, head_size: int) -> int:
        """Return the size of the matrix and its normaliser."""
        return kv_heads * head_size * (head_size + 1)

    def write(self, memory: Memory, segment: Segment) -> Memory:
        """Add the segment to the matrix."""
        text = segment.text
        real = text.used[..., None]  # [B, 1, T, 1]
        keys, values = at_least_float32(text.keys), at_least_float32(text.values)
        features = keys.clamp_max(0).exp().where(keys < 0, keys + 1) * real
        before = memory.recurrent.get("matrix")
        if before is None:
            shape = (*keys.shape[:2], keys.shape[3], keys.shape[3] + 1)
            before = keys.new_zeros(shape)
        with full_precision(keys):
            if self.delta:
                answer = features @ before
                weight = answer[..., -1:]
                known = answer[..., :-1] / weight.where(weight > 0, 1)
                values = values - known.where(weight > 0, 0)
            added = features.mT @ values
        total = features.sum(2)[..., None]
        matrix = before.clone()
        matrix[..., :-1] += added
        matrix[..., -1:] += total
        return replace(memory, recurrent={**memory.recurrent, "matrix": matrix})
