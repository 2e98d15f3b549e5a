"""Storage with room behind it, so that a memory that only grows is not copied for each segment.

Shapes: B rows, G key-value heads, M slots, n new ones, D head size.
"""

import torch
from torch import Tensor

SPARE_FRACTION = 4
"""A new room has a fourth of its slots free: a slot is then copied four times in all at most."""
MIN_SPARE = 512


class KVBuffer:
    """Keys and values [B, G, capacity, D], of which memories that grew out of each other are parts.

    What lies in front of `end` is never written again, so every memory keeps its value; only the
    one that ends there can grow in place.
    """

    def __init__(self, keys: Tensor, values: Tensor, more: int, *, pin: bool = False):
        """Copy the slots of keys and values [B, G, M, D], and leave room for `more` and others.

        `pin`: in pinned memory, from which copies to a GPU run beside the computation.
        """
        B, G, M, D = keys.shape
        capacity = M + more + max((M + more) // SPARE_FRACTION, MIN_SPARE)
        self.keys = keys.new_empty(B, G, capacity, D, pin_memory=pin)
        self.values = values.new_empty(B, G, capacity, D, pin_memory=pin)
        self.end = 0
        self.write(keys, values)

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Put slots behind the last one."""
        new = slice(self.end, self.end + keys.shape[2])
        # .data, because autograd would take a write behind a memory for a change of the memory
        self.keys.data[:, :, new] = keys
        self.values.data[:, :, new] = values
        self.end = new.stop

    def part(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the newest `size` slots."""
        start = self.end - size
        return self.keys.data[:, :, start : self.end], self.values.data[:, :, start : self.end]

    def fits(self, keys: Tensor, newer: Tensor) -> bool:
        """Whether `newer` [B, G, n, D] can be written behind `keys`, a part of this room."""
        size = self.keys.shape[3] * self.keys.element_size()
        begins = (keys.data_ptr() - self.keys.data_ptr()) // size
        last = begins + keys.shape[2] == self.end
        buffer = self.end + newer.shape[2] <= self.keys.shape[2]
        return last and buffer and self.keys.is_inference() == torch.is_inference_mode_enabled()


def append_in_place(
    buffer: KVBuffer | None, keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor
) -> tuple[Tensor, Tensor, KVBuffer | None]:
    """Put new keys and values behind others, in their room if there is one with space.

    Where gradient flows, or shapes and types differ, all is copied and there is no room.
    """
    alike = keys.dtype == new_keys.dtype and keys.shape[:2] == new_keys.shape[:2]
    if torch.is_grad_enabled() or not alike or torch.compiler.is_compiling():
        return torch.cat([keys, new_keys], 2), torch.cat([values, new_values], 2), None
    if buffer is None or not buffer.fits(keys, new_keys):
        # asked of the new ones: a memory begins empty, and an empty tensor is never pinned
        buffer = KVBuffer(keys, values, new_keys.shape[2], pin=new_keys.is_pinned())
    buffer.write(new_keys, new_values)
    return *buffer.part(keys.shape[2] + new_keys.shape[2]), buffer
