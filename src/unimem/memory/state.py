"""What a layer remembers, and the finished segment that is written into it.

Shapes: B rows, H query heads, G key-value heads, S slots, N tokens of a segment with inserted
ones, D head size, K picks.
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
    """The memory of one layer: slots, oldest first.

    Free slots stand before used ones (a row that was reset has fewer used ones than its
    neighbours), except for the padding of a document's last segment.
    """

    keys: Tensor
    """Un-rotated keys [B, G, S, D], with the model's own number of key-value heads."""
    values: Tensor
    """[B, G, S, D]."""
    positions: Tensor
    """Positions in the document [B, S], negative for a free slot; [B, G, S] once heads keep
    different tokens."""
    notes: Mapping[str, Tensor] = field(default_factory=_none_named)
    """What options note of each slot, by name [B, 1 or G or H, S]; constants to the gradient.
    `received`, `received_own_segment` [B, H, S] and `last` are attention (see `Option.observes`);
    `block` is the position of the first token of the slot's block, `mark` is 1 for a landmark,
    `tier` 1 for a compressed slot, `surprise` is the token's loss."""
    recurrent: Mapping[str, Tensor] = field(default_factory=_none_named)
    """States of fixed size [B, ...], by name, for a `StateReading`; zeros where nothing is written.
    """
    buffer: KVBuffer | None = field(default=None, repr=False, compare=False)
    """Where keys and values lie, if there is space behind them."""

    @classmethod
    def empty(cls, like: Tensor) -> "Memory":
        """Return an empty memory with the rows, heads, size and dtype of `like` [B, G, T, D]."""
        nothing = like[:, :, :0].detach()
        slots = torch.empty(like.shape[0], 0, dtype=torch.long, device=like.device)
        return cls(nothing, nothing, slots)

    @property
    def places(self) -> Tensor:
        """The positions [B, 1 or G, S]."""
        return self.positions if self.positions.ndim == 3 else self.positions[:, None]

    @property
    def valid(self) -> Tensor:
        """Which slots are used, in the shape of `positions`."""
        return self.positions >= 0

    @property
    def used(self) -> Tensor:
        """Which slots are used [B, 1 or G, S]."""
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
            {**self.recurrent, **newer.recurrent},
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
        """Keep of the slots where `chosen` [B, 1 or G, S] is true the newest `size`, in order.

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
        """Set notes [B, 1 or G, S]."""
        return replace(self, notes={**self.notes, **notes})

    def with_recurrent(self, change: Callable[[Tensor], Tensor]) -> "Memory":
        """Change every state of fixed size."""
        return replace(self, recurrent={name: change(x) for name, x in self.recurrent.items()})

    def forget(self, rows: Tensor) -> "Memory":
        """Free every slot of the rows where `rows` [B] is true."""
        rows = rows.to(self.positions.device)
        each = rows.view(-1, *[1] * (self.positions.ndim - 1))
        freed = replace(self, positions=self.positions.masked_fill(each, FREE))
        return freed.with_recurrent(lambda x: x.masked_fill(rows.view(-1, *[1] * (x.ndim - 1)), 0))

    @classmethod
    def join(cls, parts: "Sequence[Memory]") -> "Memory":
        """Put the rows of several memories behind each other; a shorter one gets free slots.

        A note or a state that one of them lacks is 0 there.
        """
        slots = max(len(part) for part in parts)
        heads = max(part.places.shape[1] for part in parts)
        per_head = any(part.positions.ndim == 3 for part in parts)
        names = sorted({name for part in parts for name in part.notes})
        first = {name: next(p.notes[name] for p in parts if name in p.notes) for name in names}
        recurrent = {name: state for part in parts for name, state in part.recurrent.items()}

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

        def state(part: Memory, name: str) -> Tensor:
            like = recurrent[name]
            found = part.recurrent.get(name)
            return like.new_zeros(len(part.keys), *like.shape[1:]) if found is None else found

        return cls(
            torch.cat([along_slots(part.keys) for part in parts]),
            torch.cat([along_slots(part.values) for part in parts]),
            torch.cat([places(part) for part in parts]),
            {name: joined(name) for name in names},
            {name: torch.cat([state(part, name) for part in parts]) for name in recurrent},
        )

    def rows(self, index: Tensor) -> "Memory":
        """Take the memories of the rows `index` [B'], in that order."""
        index = index.to(self.positions.device)
        taken = self._map(lambda x, dim: x[index])
        return taken.with_recurrent(lambda x: x[index])

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
        return there.with_recurrent(lambda x: x.to(device))

    def detach(self) -> "Memory":
        """Cut the gradient."""
        cut = replace(self, keys=self.keys.detach(), values=self.values.detach())
        return cut.with_recurrent(Tensor.detach)

    def compact(self) -> "Memory":
        """Drop the leading slots that are free in every row; nothing visible changes."""
        free = self.used.any(1).any(0).nonzero()
        return self.last(len(self) - int(free[0]) if len(free) else 0)

    def tensors(self) -> dict[str, Any]:
        """Return plain tensors and dicts."""
        # a part of a buffer would be saved with the whole buffer
        return {
            "keys": self.keys if self.buffer is None else self.keys.clone(),
            "values": self.values if self.buffer is None else self.values.clone(),
            "positions": self.positions,
            "notes": dict(self.notes),
            "recurrent": dict(self.recurrent),
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
            self.recurrent,
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
    """A finished segment, as the options of one layer see it."""

    tokens: Memory
    """Its text and inserted tokens, in order; padding has the position `FREE`."""
    text_at: Tensor
    """Indices of the text among the tokens."""
    inserted_at: Tensor
    """Indices of the inserted tokens."""
    queries: Tensor
    """Un-rotated queries [B, H, N, D]."""
    weights: Mapping[str, Tensor] = field(default_factory=_none_named)
    """The weights that the layer's options declare, by name."""
    losses: list[Tensor] = field(default_factory=_none_listed)
    """Options append losses here, which are added to the training loss."""

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
