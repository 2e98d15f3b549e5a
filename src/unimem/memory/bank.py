"""All that passes from one segment to the next: memories, soft tokens, the open segment.

Shapes: B rows, P soft tokens of a summary, K kept summaries, E hidden size, T tokens of an open
segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unimem.memory.state import Memory


@dataclass(frozen=True, slots=True)
class SoftMemory:
    """Summaries kept as soft tokens at the input, newest last."""

    states: Tensor
    """The summaries of the last K segments [B, K, P, E]."""
    counts: Tensor
    """How many of the K summaries are real [B]."""

    @classmethod
    def empty(cls, batch: int, kept: int, learned: Tensor) -> "SoftMemory":
        """Return no summaries; `learned` [n, E] tells size, dtype and device."""
        counts = torch.zeros(batch, dtype=torch.long, device=learned.device)
        return cls(learned.new_zeros(batch, kept, *learned.shape), counts)

    def append(self, summary: Tensor, kept: int | None) -> "SoftMemory":
        """Keep `summary` [B, n, E] as the newest state, and of all the newest `kept`, or all."""
        states = torch.cat([self.states, summary[:, None].to(self.states.dtype)], 1)
        counts = self.counts + 1 if kept is None else (self.counts + 1).clamp_max(kept)
        return SoftMemory(states[:, states.shape[1] - (kept or int(counts.max())) :], counts)

    def forget(self, rows: Tensor) -> "SoftMemory":
        """Lose every summary of the rows where `rows` [B] is true."""
        return replace(self, counts=self.counts.masked_fill(rows, 0))

    @classmethod
    def join(cls, parts: "Sequence[SoftMemory]") -> "SoftMemory":
        """Put the rows of several behind each other."""
        kept = max(part.states.shape[1] for part in parts)

        def states(part: SoftMemory) -> Tensor:
            x = part.states
            return torch.cat([x.new_zeros(len(x), kept - x.shape[1], *x.shape[2:]), x], 1)

        return cls(
            torch.cat([states(part) for part in parts]), torch.cat([part.counts for part in parts])
        )

    def rows(self, index: Tensor) -> "SoftMemory":
        """Take the summaries of the rows `index` [B'], in that order."""
        return SoftMemory(self.states[index], self.counts[index])

    def detach(self) -> "SoftMemory":
        """Cut the gradient."""
        return replace(self, states=self.states.detach())


@dataclass(frozen=True, slots=True)
class OpenSegment:
    """The text of each row's segment that is not full yet, and so not in memory."""

    tokens: Tensor
    """Ids [B, T], 0 behind the real ones."""
    lengths: Tensor
    """How many tokens of each row are real [B]."""

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> "OpenSegment":
        """Return the open segment of rows that stand at a segment's start."""
        nothing = torch.zeros(batch, 0, dtype=torch.long, device=device)
        return cls(nothing, nothing.new_zeros(batch))

    @classmethod
    def join(cls, parts: "Sequence[OpenSegment]") -> "OpenSegment":
        """Put the rows of several behind each other."""
        width = max(part.tokens.shape[1] for part in parts)

        def padded(x: Tensor) -> Tensor:
            return torch.cat([x, x.new_zeros(len(x), width - x.shape[1])], 1)

        return cls(
            torch.cat([padded(part.tokens) for part in parts]),
            torch.cat([part.lengths for part in parts]),
        )

    def forget(self, rows: Tensor) -> "OpenSegment":
        """Lose the text of the rows where `rows` [B] is true."""
        return OpenSegment(
            self.tokens.masked_fill(rows[:, None], 0), self.lengths.masked_fill(rows, 0)
        )

    def rows(self, index: Tensor) -> "OpenSegment":
        """Take the rows `index` [B'], in that order."""
        return OpenSegment(self.tokens[index], self.lengths[index])


@dataclass(frozen=True, slots=True)
class MemoryBank:
    """Everything that passes from one segment to the next, and the text of an open segment."""

    position: Tensor
    """Position in the document of each row's next segment [B], inserted tokens counted."""
    layers: Mapping[int, Memory] = field(default_factory=dict[int, Memory])
    """The memory of each injected layer, by the layer's index from 0."""
    soft: SoftMemory | None = None
    """Summaries that are fed back at the input."""
    hidden: Tensor | None = None
    """The final hidden state of each row's last token before the next segment [B, E], which
    predicts the segment's first token; NaN where there is none."""
    open: OpenSegment | None = None
    """What `unimem.read` has read of the next segment so far; None for nothing. Memory holds whole
    segments only."""

    @classmethod
    def empty(cls, batch: int, device: torch.device | str = "cpu") -> "MemoryBank":
        """Return the bank that every document starts with."""
        return cls(torch.zeros(batch, dtype=torch.long, device=device))

    @classmethod
    def join(cls, parts: "Sequence[MemoryBank]") -> "MemoryBank":
        """Put the rows of several banks of one model behind each other."""
        device = parts[0].position.device
        found = {layer: memory for part in parts for layer, memory in part.layers.items()}

        def memory(part: MemoryBank, layer: int) -> Memory:
            if layer in part.layers:
                return part.layers[layer]
            keys = found[layer].keys
            return Memory.empty(keys.new_zeros(len(part.position), *keys.shape[1:]))

        def soft(part: MemoryBank, like: SoftMemory) -> SoftMemory:
            rows = len(part.position)
            return part.soft or SoftMemory.empty(rows, like.states.shape[1], like.states[0, 0])

        def hidden(part: MemoryBank, like: Tensor) -> Tensor:
            none = like.new_full((len(part.position), like.shape[1]), torch.nan)
            return none if part.hidden is None else part.hidden

        summaries = next((part.soft for part in parts if part.soft is not None), None)
        states = next((part.hidden for part in parts if part.hidden is not None), None)
        opened = [part.open or OpenSegment.empty(len(part.position), device) for part in parts]
        return cls(
            torch.cat([part.position for part in parts]),
            {layer: Memory.join([memory(p, layer) for p in parts]) for layer in sorted(found)},
            None if summaries is None else SoftMemory.join([soft(p, summaries) for p in parts]),
            None if states is None else torch.cat([hidden(part, states) for part in parts]),
            OpenSegment.join(opened) if any(part.open is not None for part in parts) else None,
        )

    def forget(self, rows: Tensor) -> "MemoryBank":
        """Start the rows where `rows` [B] is true afresh; the others keep all they have."""
        hidden = self.hidden
        if hidden is not None:  # nothing predicts a document's first token
            hidden = hidden.masked_fill(rows[:, None], torch.nan)
        return MemoryBank(
            self.position.masked_fill(rows, 0),
            {layer: memory.forget(rows).compact() for layer, memory in self.layers.items()},
            None if self.soft is None else self.soft.forget(rows),
            hidden,
            None if self.open is None else self.open.forget(rows),
        )

    def rows(self, index: Tensor) -> "MemoryBank":
        """Take the rows `index` [B'], in that order."""
        return MemoryBank(
            self.position[index],
            {layer: memory.rows(index) for layer, memory in self.layers.items()},
            None if self.soft is None else self.soft.rows(index),
            None if self.hidden is None else self.hidden[index],
            None if self.open is None else self.open.rows(index),
        )

    def replaced(self, index: Tensor, newer: "MemoryBank") -> "MemoryBank":
        """Put the rows of `newer` in the place of the rows `index` [B']."""
        count = len(self.position)
        kept = torch.ones(count, dtype=torch.bool, device=index.device)
        kept[index] = False
        others = kept.nonzero()[:, 0]
        if not len(others):
            return newer.rows(index.argsort())
        order = torch.cat([others, index]).argsort()
        return MemoryBank.join([self.rows(others), newer]).rows(order)

    def detach(self) -> "MemoryBank":
        """Cut the gradient of everything."""
        return MemoryBank(
            self.position,
            {layer: memory.detach() for layer, memory in self.layers.items()},
            None if self.soft is None else self.soft.detach(),
            None if self.hidden is None else self.hidden.detach(),
            self.open,
        )

    def bytes_per_row(self) -> int:
        """Size of what one row remembers, in bytes; an open segment's text is not counted."""
        tensors: list[Tensor] = []
        for memory in self.layers.values():
            tensors += [memory.keys, memory.values, memory.positions, *memory.notes.values()]
            tensors += memory.recurrent.values()
        if self.soft is not None:
            tensors.append(self.soft.states)
        return sum(t.numel() * t.element_size() for t in tensors) // len(self.position)

    def state_dict(self) -> dict[str, Any]:
        """Return plain tensors and dicts, loadable with `weights_only=True`."""
        return {
            "position": self.position,
            "layers": {i: memory.tensors() for i, memory in self.layers.items()},
            "soft": None
            if self.soft is None
            else {"states": self.soft.states, "counts": self.soft.counts},
            "hidden": self.hidden,
            "open": None
            if self.open is None
            else {"tokens": self.open.tokens, "lengths": self.open.lengths},
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "MemoryBank":
        """Rebuild the bank that `state_dict` described; one without `open` has no open segment."""
        opened = state.get("open")
        return cls(
            state["position"],
            {i: Memory(**memory) for i, memory in state["layers"].items()},
            None if state["soft"] is None else SoftMemory(**state["soft"]),
            state["hidden"],
            None if opened is None else OpenSegment(**opened),
        )
