"""Which ages of memory are read: how attention falls on slots by their distance.

Shapes: B rows, H heads, T queries, M slots, K buckets.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from unimem.memory.state import FREE, Memory


class Ages:
    """An observer that sums attention weights and slots by distance, for each layer.

    Buckets of the distance in tokens from query to slot double in width: 1..S, S+1..2S, 2S+1..4S
    and so on, where S is the segment length.
    """

    def __init__(self, segment_length: int):
        self._length = segment_length
        self._shares: defaultdict[int, Tensor] = defaultdict(_nothing)
        self._slots: defaultdict[int, Tensor] = defaultdict(_nothing)
        self._queries: defaultdict[int, int] = defaultdict(int)

    def __call__(
        self, layer: int, attention_weights: Tensor, queries: Tensor, memory: Memory
    ) -> None:
        """Add what a segment's queries read; those whose memory is empty do not count."""
        used = memory.used  # [B, 1 or G, M]
        sets = used.shape[1]
        counted = (queries != FREE) & used.any(1).any(1, keepdim=True)
        distance = queries[:, None, :, None] - memory.places[:, :, None, :]
        pairs = (counted[:, None, :, None] & used[:, :, None, :]).expand_as(distance)
        bucket = self._bucket(distance)[pairs]
        mean = attention_weights.unflatten(1, (sets, -1)).mean(2).double()[pairs] / sets
        for sums, values in ((self._shares, mean), (self._slots, torch.full_like(mean, 1 / sets))):
            new = torch.bincount(bucket.cpu(), values.cpu())
            old = sums[layer]
            size = max(len(old), len(new))
            sums[layer] = _padded(old, size) + _padded(new, size)
        self._queries[layer] += int(counted.sum())

    def record(self, documents: int) -> dict[str, Any] | None:
        """Return means over queries and heads, ready for JSON; None if there was never any memory.

        `share[layer][i]` is the part of a query's attention that falls on the slots at distances
        edges[i] <= d < edges[i + 1], and `slots[layer][i]` how many slots stand there.
        """
        layers = sorted(layer for layer, count in self._queries.items() if count)
        if not layers:
            return None
        size = max(len(self._shares[layer]) for layer in layers)
        edges = [1, *(self._length * 2**i + 1 for i in range(size))]
        return {"documents": documents, "edges": edges} | {
            name: {
                str(layer): [
                    float(f"{value:.6g}")
                    for value in (_padded(sums[layer], size) / self._queries[layer]).tolist()
                ]
                for layer in layers
            }
            for name, sums in (("share", self._shares), ("slots", self._slots))
        }

    def _bucket(self, distance: Tensor) -> Tensor:
        """Number the buckets: 0 up to S, 1 up to 2 S, 2 up to 4 S."""
        limits = self._length * 2 ** torch.arange(40, device=distance.device)
        return torch.bucketize(distance, limits)


def _nothing() -> Tensor:
    return torch.zeros(0, dtype=torch.float64)


def _padded(sums: Tensor, size: int) -> Tensor:
    return torch.cat([sums, sums.new_zeros(size - len(sums))])
