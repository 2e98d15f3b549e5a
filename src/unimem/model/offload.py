"""Memory that waits in the machine's own memory, so that a long one fits beside the weights.

While a layer computes, the next one's memory is on its way; slots are written and evicted where
they wait, so that only new ones are sent back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unimem.memory.state import Memory, Segment

HOST = torch.device("cpu")


class LayerPrefetcher:
    """Brings the memories of layers to the device of the model, one layer ahead.

    `layers` are those with memory, in order, `memories` what they start the call with. On a GPU
    copies run beside the computation, from pinned memory.
    """

    def __init__(self, layers: Sequence[int], memories: Mapping[int, Memory], device: torch.device):
        self.layers, self.memories, self.device = list(layers), memories, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.in_flight: dict[int, Memory] = {}

    def fetch(self, layer: int, memory: Memory, *, ahead: bool = True) -> Memory:
        """Return a layer's memory on the device and, if `ahead`, send for the next layer's."""
        in_flight = self.in_flight.pop(layer, None)
        if in_flight is None or memory.keys.data_ptr() != self.memories[layer].keys.data_ptr():
            here = memory.to(self.device)
        else:
            assert self.stream is not None, "only a stream of its own runs ahead"
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in (in_flight.keys, in_flight.values):
                tensor.record_stream(current)
            # a row may have been reset since, and the gradient cut
            rest = replace(memory, keys=memory.keys[:, :, :0], values=memory.values[:, :, :0])
            here = replace(rest.to(self.device), keys=in_flight.keys, values=in_flight.values)
            here = here if memory.keys.requires_grad else here.detach()
        if ahead:
            self._prefetch(layer)
        return here

    def _prefetch(self, layer: int) -> None:
        place = self.layers.index(layer) + 1
        following = self.layers[place] if place < len(self.layers) else None
        if following is None or following in self.in_flight or following not in self.memories:
            return
        if self.stream is None:
            return  # nothing runs beside a CPU
        with torch.cuda.stream(self.stream):
            self.in_flight[following] = self.memories[following].to(self.device)


def to_host(segment: Segment) -> Segment:
    """Return a finished segment where its slots will wait; queries go with it if any option learns.

    New slots are written into pinned memory if there is a GPU.
    """
    weights = {name: weight.to(HOST) for name, weight in segment.weights.items()}
    return replace(
        segment,
        tokens=pinned(segment.tokens),
        text_at=segment.text_at.to(HOST),
        inserted_at=segment.inserted_at.to(HOST),
        queries=segment.queries.to(HOST) if weights else segment.queries,
        weights=weights,
    )


def pinned(memory: Memory) -> Memory:
    """Return a memory on the CPU, its keys and values in pinned memory if there is a GPU."""
    if memory.keys.device == HOST:
        return memory

    def pin(x: Tensor) -> Tensor:
        room = torch.empty(x.shape, dtype=x.dtype, pin_memory=torch.cuda.is_available())
        return room.copy_(x)

    keys, values = memory.keys, memory.values
    rest = replace(memory, keys=keys[:, :, :0], values=values[:, :, :0]).to(HOST)
    return replace(rest, keys=pin(keys), values=pin(values))
