"""The values that travel: one layer's memory, the soft tokens at the input, and the bank.

Shapes: B rows, G key-value heads, M slots, D head size, n soft tokens, K kept
states, E hidden size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

FREE = -1
"""The position of a slot that holds nothing."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What one layer remembers, oldest slot first. A finished segment is a `Memory` too.

    keys [B, G, M, D] are stored before rotary embedding and at the model's own number of key-value
    heads; values [B, G, M, D]; positions [B, M] are places in the document, negative for a free
    slot. Free slots come first (a row that was reset has fewer used ones than its neighbours), but
    for the padding of a document's last segment, behind which the row starts afresh.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, like: Tensor) -> "Memory":
        """Give a memory of no slots with the rows, heads, size and dtype of `like` [B, G, T, D]."""
        nothing = like[:, :, :0].detach()
        slots = torch.empty(like.shape[0], 0, dtype=torch.long, device=like.device)
        return cls(nothing, nothing, slots)

    @property
    def valid(self) -> Tensor:
        """Which slots are used [B, M]."""
        return self.positions >= 0

    def __len__(self) -> int:
        return self.positions.shape[1]

    def append(self, newer: "Memory") -> "Memory":
        """Put `newer` slots behind these."""
        return Memory(
            torch.cat([self.keys, newer.keys], 2),
            torch.cat([self.values, newer.values], 2),
            torch.cat([self.positions, newer.positions], 1),
        )

    def last(self, size: int) -> "Memory":
        """Keep the newest `size` slots."""
        start = max(len(self) - size, 0)
        return Memory(self.keys[:, :, start:], self.values[:, :, start:], self.positions[:, start:])

    def forget(self, rows: Tensor) -> "Memory":
        """Free every slot of the rows where `rows` [B] is true."""
        return replace(self, positions=self.positions.masked_fill(rows[:, None], FREE))

    def rows(self, index: Tensor) -> "Memory":
        """Take the memories of the rows `index` [B'], in that order."""
        return Memory(self.keys[index], self.values[index], self.positions[index])

    def detach(self) -> "Memory":
        """Cut the gradient."""
        return replace(self, keys=self.keys.detach(), values=self.values.detach())

    def compact(self) -> "Memory":
        """Drop the leading slots that are free in every row; nothing visible changes."""
        used = self.valid.any(0).nonzero()
        return self.last(len(self) - int(used[0]) if len(used) else 0)


@dataclass(frozen=True, slots=True)
class SoftMemory:
    """Summaries kept as soft tokens at the input, newest last.

    states [B, K, n, E] hold the last K segments' summaries, counts [B] how many of them are real.
    """

    states: Tensor
    counts: Tensor

    @classmethod
    def empty(cls, batch: int, kept: int, learned: Tensor) -> "SoftMemory":
        """Give no summaries; `learned` [n, E] tells size, dtype and device."""
        counts = torch.zeros(batch, dtype=torch.long, device=learned.device)
        return cls(learned.new_zeros(batch, kept, *learned.shape), counts)

    def append(self, summary: Tensor) -> "SoftMemory":
        """Keep `summary` [B, n, E] as the newest state, dropping the oldest."""
        states = torch.cat([self.states[:, 1:], summary[:, None].to(self.states.dtype)], 1)
        return SoftMemory(states, (self.counts + 1).clamp_max(self.states.shape[1]))

    def forget(self, rows: Tensor) -> "SoftMemory":
        """Lose every summary of the rows where `rows` [B] is true."""
        return replace(self, counts=self.counts.masked_fill(rows, 0))

    def rows(self, index: Tensor) -> "SoftMemory":
        """Take the summaries of the rows `index` [B'], in that order."""
        return SoftMemory(self.states[index], self.counts[index])

    def detach(self) -> "SoftMemory":
        """Cut the gradient."""
        return replace(self, states=self.states.detach())


@dataclass(frozen=True, slots=True)
class MemoryBank:
    """Everything that passes from one segment to the next.

    layers maps a layer's index (from 0) to its memory; soft is present when summaries are fed back
    at the input; position [B] is the place in its document of each row's next token; hidden [B, E]
    is the final hidden state of each row's last token, which predicts that next token.
    """

    position: Tensor
    layers: Mapping[int, Memory] = field(default_factory=dict[int, Memory])
    soft: SoftMemory | None = None
    hidden: Tensor | None = None

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> "MemoryBank":
        """Give the bank that every document starts with."""
        return cls(torch.zeros(batch, dtype=torch.long, device=device))

    def forget(self, rows: Tensor) -> "MemoryBank":
        """Start the rows where `rows` [B] is true afresh; the others keep all they have."""
        return MemoryBank(
            self.position.masked_fill(rows, 0),
            {layer: memory.forget(rows).compact() for layer, memory in self.layers.items()},
            None if self.soft is None else self.soft.forget(rows),
            self.hidden,
        )

    def rows(self, index: Tensor) -> "MemoryBank":
        """Take the rows `index` [B'], in that order."""
        return MemoryBank(
            self.position[index],
            {layer: memory.rows(index) for layer, memory in self.layers.items()},
            None if self.soft is None else self.soft.rows(index),
            None if self.hidden is None else self.hidden[index],
        )

    def detach(self) -> "MemoryBank":
        """Cut the gradient of everything."""
        return MemoryBank(
            self.position,
            {layer: memory.detach() for layer, memory in self.layers.items()},
            None if self.soft is None else self.soft.detach(),
            None if self.hidden is None else self.hidden.detach(),
        )

    def bytes_per_row(self) -> int:
        """Size of the state that one row carries, in bytes."""
        tensors = [t for m in self.layers.values() for t in (m.keys, m.values, m.positions)]
        if self.soft is not None:
            tensors.append(self.soft.states)
        return sum(t.numel() * t.element_size() for t in tensors) // len(self.position)

    def state_dict(self) -> dict[str, Any]:
        """Give plain tensors and dicts, loadable with `weights_only=True`."""
        return {
            "position": self.position,
            "layers": {
                i: {"keys": m.keys, "values": m.values, "positions": m.positions}
                for i, m in self.layers.items()
            },
            "soft": None
            if self.soft is None
            else {"states": self.soft.states, "counts": self.soft.counts},
            "hidden": self.hidden,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "MemoryBank":
        """Rebuild the bank that `state_dict` described."""
        return cls(
            state["position"],
            {i: Memory(**memory) for i, memory in state["layers"].items()},
            None if state["soft"] is None else SoftMemory(**state["soft"]),
            state["hidden"],
        )
