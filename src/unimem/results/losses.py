"""What the seeds of one setting read, pooled.

Shapes: K seeds, N tokens of all documents together.
"""

import hashlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unimem.evaluation.statistics import Estimate, SeedEstimate, several_seeds
from unimem.evaluation.tokens import TokenTable
from unimem.results.study import CellRecord, Group

LEAST_GAP = 1e-6
"""Nats per token below which two best possible losses are the same; they are kept as float32."""
CONTROLS = {"off": "memory off", "other": "another document's memory"}
"""The controls, and what they are in words."""


@dataclass(frozen=True, kw_only=True)
class Readings:
    """What the finished seeds of a group read: losses `own` [K, N] of the tokens of `table`.

    controls: the same with memory `off` and with the memory of an `other` document, where all seeds
    read so.
    """

    group: Group
    seeds: tuple[int, ...]
    own: np.ndarray
    table: TokenTable
    controls: Mapping[str, np.ndarray]

    @property
    def cells(self) -> list[CellRecord]:
        """The finished cells, as the rows of `own`."""
        return [self.group.finished[seed] for seed in self.seeds]

    def of(self, seeds: Sequence[int]) -> np.ndarray:
        """Return the losses of some of its seeds."""
        return self.own[[self.seeds.index(seed) for seed in seeds]]

    def each(self, *path: str) -> list[float | None]:
        """Return a number of the results for every seed."""
        return [_at(cell.result, path) for cell in self.cells]

    def recorded(self, *path: str) -> float | None:
        """Return the median over seeds of a number of the results; None if one has none."""
        known = [value for value in self.each(*path) if value is not None]
        return statistics.median(known) if len(known) == len(self.cells) else None

    def level(self) -> SeedEstimate:
        """Estimate the mean loss over seeds and documents."""
        return several_seeds(self.own, self.table.document)

    def without_own(self, control: str) -> Estimate | None:
        """Estimate by how much the loss rises under a control; None if it was not read."""
        if control not in self.controls:
            return None
        return several_seeds(self.controls[control] - self.own, self.table.document)

    def gap(self) -> float | None:
        """Return the best possible loss without memory less that with all of it, in nats per token.

        None if they are not known.
        """
        columns = self.table.columns
        if "bound_none" not in columns:
            return None
        none = columns["bound_none"].astype(np.float64)
        return float((none - columns["bound_unlimited"]).mean())

    def gap_closed(self, control: str | None = None) -> Estimate | None:
        """Estimate which share of the way from the best loss without memory to the best with it.

        With the own memory, or under a control. None if the best possible losses are not known or
        memory can tell nothing, so that there is no gap, or the control was not read.
        """
        losses = self.own if control is None else self.controls.get(control)
        gap = self.gap()
        if losses is None or gap is None or gap < LEAST_GAP:
            return None
        none = self.table.columns["bound_none"].astype(np.float64)
        beyond = several_seeds(losses - none, self.table.document)
        return Estimate(
            mean=-beyond.mean / gap,
            low=-beyond.high / gap,
            high=-beyond.low / gap,
            documents=beyond.documents,
            tokens=beyond.tokens,
        )


def load(group: Group) -> tuple[str, Readings]:
    """Read the losses of a group's finished cells, and say what identifies the tokens.

    Raises ValueError if its seeds read different documents.
    """
    seeds = tuple(sorted(group.finished))
    tables = [TokenTable.load(group.finished[seed].folder) for seed in seeds]
    identities = {
        _identity(group.finished[seed], table) for seed, table in zip(seeds, tables, strict=True)
    }
    if len(identities) > 1:
        raise ValueError(f"{group.label}: its seeds read different documents; give them one corpus")
    losses = {
        use: np.stack([table.columns[use] for table in tables])
        for use in ("own", *CONTROLS)
        if all(use in table.columns for table in tables)
    }
    own = losses.pop("own")
    readings = Readings(group=group, seeds=seeds, own=own, table=tables[0], controls=losses)
    return identities.pop(), readings


def _identity(cell: CellRecord, table: TokenTable) -> str:
    assert cell.result is not None
    digest = hashlib.sha256(cell.result["corpus"]["digest"].encode())
    for array in (table.names, table.document, table.position):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _at(values: object, path: Iterable[str]) -> float | None:
    for key in path:
        assert isinstance(values, dict)
        values = values[key]
    assert values is None or isinstance(values, int | float)
    return values
