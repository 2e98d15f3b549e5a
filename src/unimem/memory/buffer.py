"""A buffer with spare slots, so that a growing memory is not copied for each segment.

Shapes: B rows, G key-value heads, S slots, N new slots, D head size.
"""

import torch
from torch import Tensor

SPARE_FRACTION = 4
"""One in so many slots of a new buffer is spare: a slot is copied at most four times in all."""
MIN_SPARE = 512
"""Spare slots of a new buffer at least."""


class KVBuffer:
    """Keys and values [B, G, capacity, D], which successive memories share.

    Slots before `end` are never overwritten, so every memory keeps its value; only the memory that
    stops at `end` can grow in place.
    """

    def __init__(self, keys: Tensor, values: Tensor, more: int, *, pin: bool = False):
        """Copy keys and values [B, G, S, D], and reserve `more` slots and some spare ones.

        `pin`: use pinned memory, from which copies to a GPU run beside the computation.
        """
        B, G, S, D = keys.shape
        capacity = S + more + max((S + more) // SPARE_FRACTION, MIN_SPARE)
        self.keys = keys.new_empty(B, G, capacity, D, pin_memory=pin)
        self.values = values.new_empty(B, G, capacity, D, pin_memory=pin)
        self.end = 0
        self.write(keys, values)

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Write slots behind the last one."""
        new = slice(self.end, self.end + keys.shape[2])
        # .data: autograd would take a write into spare slots for a change of the older memory
        self.keys.data[:, :, new] = keys
        self.values.data[:, :, new] = values
        self.end = new.stop

    def part(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the newest `size` slots."""
        start = self.end - size
        return self.keys.data[:, :, start : self.end], self.values.data[:, :, start : self.end]

    def fits(self, keys: Tensor, newer: Tensor) -> bool:
        """Whether `newer` [B, G, N, D] can be written behind `keys`, a part of this buffer."""
        size = self.keys.shape[3] * self.keys.element_size()
        begins = (keys.data_ptr() - self.keys.data_ptr()) // size
        last = begins + keys.shape[2] == self.end
        has_space = self.end + newer.shape[2] <= self.keys.shape[2]
        return last and has_space and self.keys.is_inference() == torch.is_inference_mode_enabled()


def append_in_place(
    buffer: KVBuffer | None, keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor
) -> tuple[Tensor, Tensor, KVBuffer | None]:
    """Append keys and values, in place if `buffer` has space; return them and their buffer.

    Where gradient flows, or shapes or types differ, everything is copied, without a buffer.
    """
    alike = keys.dtype == new_keys.dtype and keys.shape[:2] == new_keys.shape[:2]
    if torch.is_grad_enabled() or not alike or torch.compiler.is_compiling():
        return torch.cat([keys, new_keys], 2), torch.cat([values, new_values], 2), None
    if buffer is None or not buffer.fits(keys, new_keys):
        # new_keys decide: a memory begins empty, and an empty tensor is never pinned
        buffer = KVBuffer(keys, values, new_keys.shape[2], pin=new_keys.is_pinned())
    buffer.write(new_keys, new_values)
    return *buffer.part(keys.shape[2] + new_keys.shape[2]), buffer
