"""The values that travel: a layer's memory, a segment finished or open, soft tokens, and the bank.

Shapes: B rows, G key-value heads, M slots, D head size, n soft tokens, K kept
states, E hidden size, R text tokens of an open segment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unimem.memory.buffer import KVBuffer, append_in_place

FREE = -1
"""The position of a slot that holds nothing."""


def _none_named() -> dict[str, Tensor]:  # torch.compile knows no dict[str, Tensor]()
    return {}


def _none_listed() -> list[Tensor]:
    return []


@dataclass(frozen=True, slots=True)
class Memory:
    """What one layer remembers, oldest slot first.

    keys [B, G, M, D] are stored before rotary embedding and at the model's own number of key-value
    heads; values [B, G, M, D]; positions [B, M] are places in the document, negative for a free
    slot, or [B, G, M] once heads keep different tokens. Free slots come first (a row that was reset
    has fewer used ones than its neighbours), but for the padding of a document's last segment,
    behind which the row starts afresh.

    notes [B, 1 or G, M], `home` [B, H, M] of H query heads, say more of each slot, by name, and are
    constants to the gradient: `received`, `home` and `last` are attention (see `Option.observes`),
    `block` is the place of the first token of a slot's block, `mark` is 1 for a block's landmark,
    `tier` 1 for a slot that was compressed, `surprise` is a token's loss. matrix [B, G, D, D + 1],
    float32 at least, is an associative memory: its last column the normaliser. `buffer` is where
    keys and values lie if there is space behind them.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    notes: Mapping[str, Tensor] = field(default_factory=_none_named)
    matrix: Tensor | None = None
    buffer: KVBuffer | None = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, like: Tensor) -> "Memory":
        """Return an empty memory with the rows, heads, size and dtype of `like` [B, G, T, D]."""
        nothing = like[:, :, :0].detach()
        slots = torch.empty(like.shape[0], 0, dtype=torch.long, device=like.device)
        return cls(nothing, nothing, slots)

    @property
    def places(self) -> Tensor:
        """The positions [B, 1 or G, M]."""
        return self.positions if self.positions.ndim == 3 else self.positions[:, None]

    @property
    def valid(self) -> Tensor:
        """Which slots are used, in the shape of `positions`."""
        return self.positions >= 0

    @property
    def used(self) -> Tensor:
        """Which slots are used [B, 1 or G, M]."""
        return self.places >= 0

    def __len__(self) -> int:
        return self.keys.shape[2]

    def append(self, newer: "Memory") -> "Memory":
        """Put `newer` slots behind these; a note that one side lacks is 0 there."""
        older, placed = self.positions, newer.positions
        if older.ndim != placed.ndim:
            older, placed = self.places, newer.places
        keys, values, buffer = append_in_place(
            self.buffer, self.keys, self.values, newer.keys, newer.values
        )
        return Memory(
            keys,
            values,
            _behind(older, placed),
            {
                name: _behind(_note(self, newer, name), _note(newer, self, name))
                for name in self.notes.keys() | newer.notes.keys()
            },
            self.matrix if newer.matrix is None else newer.matrix,
            buffer,
        )

    def last(self, size: int) -> "Memory":
        """Keep the newest `size` slots."""
        start = max(len(self) - size, 0)
        kept = self._map(lambda x, dim: x.narrow(dim, start, x.shape[dim] - start))
        return replace(kept, buffer=self.buffer)

    def take(self, index: Tensor) -> "Memory":
        """Keep the slots `index` [K], in that order."""
        return self._map(lambda x, dim: x.index_select(dim, index))

    def keep(self, chosen: Tensor, size: int) -> "Memory":
        """Keep of the slots where `chosen` [B, 1 or G, M] is true the newest `size`, in order.

        Heads that choose differently hold different tokens from then on.
        """
        size = min(size, len(self))
        chosen = chosen & self.used
        order = chosen.byte().argsort(dim=-1, stable=True)[..., len(self) - size :]
        held = chosen.gather(-1, order)

        def pick(x: Tensor, dim: int) -> Tensor:
            if x.ndim == 2:
                x = x[:, None]
            index = order.expand(-1, max(x.shape[1], order.shape[1]), -1)
            x = x.expand(-1, index.shape[1], *x.shape[2:])
            if x.ndim == 4:
                return x.gather(2, index.unsqueeze(-1).expand(-1, -1, -1, x.shape[3]))
            return x.gather(2, index)

        positions = pick(self.positions, -1).where(held, FREE)
        picked = self._map(pick)
        return replace(picked, positions=positions[:, 0] if positions.shape[1] == 1 else positions)

    def noted(self, **notes: Tensor) -> "Memory":
        """Set notes [B, 1 or G, M]."""
        return replace(self, notes={**self.notes, **notes})

    def forget(self, rows: Tensor) -> "Memory":
        """Free every slot of the rows where `rows` [B] is true."""
        rows = rows.to(self.positions.device)
        each = rows.view(-1, *[1] * (self.positions.ndim - 1))
        matrix = self.matrix
        if matrix is not None:
            matrix = matrix.masked_fill(rows[:, None, None, None], 0)
        return replace(self, positions=self.positions.masked_fill(each, FREE), matrix=matrix)

    @classmethod
    def join(cls, parts: "Sequence[Memory]") -> "Memory":
        """Put the rows of several memories behind each other; a shorter one gets free slots.

        A note or a matrix that one of them lacks is 0 there.
        """
        slots = max(len(part) for part in parts)
        heads = max(part.places.shape[1] for part in parts)
        per_head = any(part.positions.ndim == 3 for part in parts)
        names = sorted({name for part in parts for name in part.notes})
        first = {name: next(p.notes[name] for p in parts if name in p.notes) for name in names}
        matrix = next((part.matrix for part in parts if part.matrix is not None), None)

        def along_slots(x: Tensor, value: int = 0) -> Tensor:
            missing = slots - x.shape[2]
            pad = x.new_full((*x.shape[:2], missing, *x.shape[3:]), value)
            return torch.cat([pad, x], 2) if missing else x

        def places(part: Memory) -> Tensor:
            positions = along_slots(part.places, FREE)
            return positions.expand(-1, heads, -1) if per_head else positions[:, 0]

        def note(part: Memory, name: str) -> Tensor:
            like, rows = first[name], part.keys.shape[0]
            if name not in part.notes:
                return like.new_zeros(rows, like.shape[1], slots)
            return along_slots(part.notes[name])

        def joined(name: str) -> Tensor:
            notes = [note(part, name) for part in parts]
            most = max(each.shape[1] for each in notes)
            return torch.cat([each.expand(-1, most, -1) for each in notes])

        def summed(part: Memory) -> Tensor:
            assert matrix is not None
            if part.matrix is not None:
                return part.matrix
            return matrix.new_zeros(part.keys.shape[0], *matrix.shape[1:])

        return cls(
            torch.cat([along_slots(part.keys) for part in parts]),
            torch.cat([along_slots(part.values) for part in parts]),
            torch.cat([places(part) for part in parts]),
            {name: joined(name) for name in names},
            None if matrix is None else torch.cat([summed(part) for part in parts]),
        )

    def rows(self, index: Tensor) -> "Memory":
        """Take the memories of the rows `index` [B'], in that order."""
        index = index.to(self.positions.device)
        taken = self._map(lambda x, dim: x[index])
        return replace(taken, matrix=None if self.matrix is None else self.matrix[index])

    def moved(self, by: Tensor) -> "Memory":
        """Shift each row's places by `by` [B]; what would stand before its start is freed."""
        positions = self.positions + by.view(-1, *[1] * (self.positions.ndim - 1))
        kept = replace(self, positions=positions.where(self.valid & (positions >= 0), FREE))
        if "block" in self.notes:
            return kept.noted(block=self.notes["block"] + by[:, None, None])
        return kept

    def to(self, device: torch.device) -> "Memory":
        """Bring it to a device; from pinned memory the copy may still be under way."""
        if self.keys.device == device:
            return self
        ahead = device.type == "cuda"  # what arrives on the CPU may be read at once
        there = self._map(lambda x, dim: x.to(device, non_blocking=ahead))
        return replace(there, matrix=None if self.matrix is None else self.matrix.to(device))

    def detach(self) -> "Memory":
        """Cut the gradient."""
        return replace(
            self,
            keys=self.keys.detach(),
            values=self.values.detach(),
            matrix=None if self.matrix is None else self.matrix.detach(),
        )

    def compact(self) -> "Memory":
        """Drop the leading slots that are free in every row; nothing visible changes."""
        free = self.used.any(1).any(0).nonzero()
        return self.last(len(self) - int(free[0]) if len(free) else 0)

    def tensors(self) -> dict[str, Any]:
        """Return plain tensors and dicts."""
        # a part of a room would be saved with all of it
        return {
            "keys": self.keys if self.buffer is None else self.keys.clone(),
            "values": self.values if self.buffer is None else self.values.clone(),
            "positions": self.positions,
            "notes": dict(self.notes),
            "matrix": self.matrix,
        }

    def _map(self, change: Callable[[Tensor, int], Tensor]) -> "Memory":
        """Change all that is said of slots; `change` gets a tensor and the dimension of its slots.

        The dimension is 2, or the last one where there is no size of a head.
        """
        return Memory(
            change(self.keys, 2),
            change(self.values, 2),
            change(self.positions, self.positions.ndim - 1),
            {name: change(note, 2) for name, note in self.notes.items()},
            self.matrix,
        )


def _note(one: Memory, other: Memory, name: str) -> Tensor:
    """Return a note of `one`, zeros in the type of `other`'s where it has none."""
    if name in one.notes:
        return one.notes[name]
    like = other.notes[name]
    return like.new_zeros(like.shape[0], like.shape[1], len(one))


def _behind(older: Tensor, newer: Tensor) -> Tensor:
    """Join along the slots; one set for all heads becomes one for each where the other has them."""
    if older.ndim == 3 and older.shape[1] != newer.shape[1]:
        heads = max(older.shape[1], newer.shape[1])
        older, newer = older.expand(-1, heads, -1), newer.expand(-1, heads, -1)
    return torch.cat([older, newer], -1)


@dataclass(frozen=True, slots=True)
class Segment:
    """A finished segment, as the options of one layer see it.

    tokens are its text and what writing inserted into it, in the order of the sequence, at their
    places; padding stands at `FREE`. text_at and inserted_at say where among them the ones and the
    others stand. queries [B, H, N, D] are un-rotated. weights are those that the layer's options
    declare; what they put into losses is added to the training loss.
    """

    tokens: Memory
    text_at: Tensor
    inserted_at: Tensor
    queries: Tensor
    weights: Mapping[str, Tensor] = field(default_factory=_none_named)
    losses: list[Tensor] = field(default_factory=_none_listed)

    @property
    def real(self) -> Tensor:
        """Which of the tokens, and so of the queries, are no padding [B, 1, N]."""
        return self.tokens.used

    @property
    def text(self) -> Memory:
        """The text tokens alone."""
        return self.tokens.take(self.text_at) if len(self.inserted_at) else self.tokens

    @property
    def summary(self) -> Memory:
        """The inserted tokens alone."""
        return self.tokens.take(self.inserted_at)


@dataclass(frozen=True, slots=True)
class SoftMemory:
    """Summaries kept as soft tokens at the input, newest last.

    states [B, K, n, E] hold the last K segments' summaries, counts [B] how many of them are real.
    """

    states: Tensor
    counts: Tensor

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
    """The text of each row's segment that is not full yet, and so not in memory.

    tokens [B, R] are ids, 0 behind the `lengths` [B] that are real.
    """

    tokens: Tensor
    lengths: Tensor

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
    """Everything that passes from one segment to the next, and the text of an open segment.

    layers maps a layer's index (from 0) to its memory; soft is present when summaries are fed back
    at the input; position [B] is the place in its document of each row's next segment, tokens that
    writing inserted counted; hidden [B, E] is the final hidden state of each row's last token
    before that segment, which predicts the segment's first token (NaN where there is none). `open`
    is what `unimem.read` has read of that segment so far; None if nothing: memory holds whole
    segments only.
    """

    position: Tensor
    layers: Mapping[int, Memory] = field(default_factory=dict[int, Memory])
    soft: SoftMemory | None = None
    hidden: Tensor | None = None
    open: OpenSegment | None = None

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
            tensors += [] if memory.matrix is None else [memory.matrix]
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
