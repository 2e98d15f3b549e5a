"""memory.positions=cache_index: places are counted in what the query sees."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, final

from unimem.memory.option import option
from unimem.memory.positions.base import Frame, Positions, Rotation
from unimem.memory.rules import Chosen
from unimem.memory.tensors import repeat_kv

if TYPE_CHECKING:
    from torch import Tensor

    from unimem.memory.state import Memory


@final
@option
class CacheIndex(Positions):
    """The rotary distance is the number of tokens that the query sees from the slot on.

    So in StreamingLLM (Xiao 2023, arXiv 2309.17453), whose cache is re-indexed without gaps. Exact
    for each query, whatever the segment length, where the slots that it sees are the oldest ones,
    the newest ones, or both, with no gap but the one between.
    """

    after_choice: ClassVar[bool] = True
    one_rotation: ClassVar[bool] = False

    def problems(self, chosen: Chosen) -> Iterable[str]:
        """Refuse choices that depend on the logits, or that leave gaps."""
        for reading in chosen.readings:
            if reading.searches or not reading.gapless:
                yield (
                    "memory.positions=cache_index counts places in what a query sees, from both "
                    "ends: it needs memory.reading=all, or position with memory.stride=1"
                )

    def rotations(
        self, memory: Memory, frame: Frame, visible: Tensor | None = None
    ) -> tuple[Rotation, ...]:
        """Count the oldest slots from the left end, the newest from the right."""
        assert visible is not None
        used = memory.used  # [B, 1 or G, M + T]
        from_left = used.cumsum(2) - used.long()
        from_right = used.flip(2).cumsum(2).flip(2) - used.long()
        tokens = visible.shape[2]
        queries = -from_right[..., -tokens:]  # the segment's own places, from the right
        hidden = repeat_kv(used[:, :, None, :], visible.shape[1]) & ~visible
        newest = Rotation(queries, -from_right, hidden.cumsum(3) > 0)
        return newest, Rotation(visible.sum(3) - 1, from_left)
