"""The settings of a study held against each other, on the tokens that all of them read.

Shapes: K seeds, N tokens of all documents together.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimem.evaluation.statistics import Estimate, position_edges, several_seeds
from unimem.results.readings import Readings, load
from unimem.results.study import Group

ALPHA = 0.05
SEEDS = 3
"""Seeds of each side from which on a difference is one of settings, not of single trainings."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """The difference of two groups, on the same tokens and `seeds` common seeds.

    p: that a difference at least as large comes of chance alone, after Holm's correction for the
    comparisons made together.
    """

    estimate: Estimate
    seeds: int
    p: float

    @property
    def claimed(self) -> bool:
        """Whether this is a difference of settings: clear of chance, and of enough seeds."""
        return self.p < ALPHA and self.seeds >= SEEDS


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Groups that read the same tokens of one corpus.

    against_reference: differences of all others from the reference. ties: the groups that cannot
    be told from the one with the lowest loss, which is one of them; by their place in `readings`.
    """

    readings: tuple[Readings, ...]
    reference: int
    levels: tuple[Estimate, ...]
    against_reference: dict[int, Paired]
    ties: frozenset[int]

    @property
    def best(self) -> int:
        """The group with the lowest loss."""
        return _lowest(self.levels)

    @property
    def corpus(self) -> str:
        """The corpus in words."""
        result = self.readings[0].cells[0].result
        assert result is not None
        return result["corpus"]["summary"]

    def edges(self) -> list[int]:
        """Give the edges of the position buckets, in segments of the reference."""
        reference = self.readings[self.reference]
        segment_length = reference.recorded("evaluation", "segment_length")
        assert segment_length is not None
        return position_edges(int(reference.table.position.max()) + 1, int(segment_length))

    def relative(self, i: int) -> Estimate:
        """Estimate by how much group `i` is above the reference; NaN if they share no seed."""
        if i in self.against_reference:
            return self.against_reference[i].estimate
        level, value = self.levels[i], 0.0 if i == self.reference else math.nan
        return replace(level, mean=value, low=value, high=value)

    def by_position(self, nll: np.ndarray) -> list[float]:
        """Give the mean of `nll` [N] in every bucket edges[i] <= position < edges[i + 1]."""
        edges = self.edges()
        bucket = np.digitize(self.readings[0].table.position, edges) - 1
        sums, counts = np.bincount(bucket, nll.astype(np.float64)), np.bincount(bucket)
        return (sums / counts).tolist()


def panels(groups: Sequence[Group], reference: str | None = None) -> list[Panel]:
    """Load what the groups read, and compare those that read the same.

    The reference is the group of that label; without one, the first without memory, or the first.
    Groups without a finished cell are left out.

    Raises ValueError if there is no such group, or the seeds of a group read different documents.
    """
    labels = [group.label for group in groups]
    if reference is not None and reference not in labels:
        raise ValueError(f"report.reference={reference} is no cell; use one of {', '.join(labels)}")
    found: dict[str, list[Readings]] = {}
    for group in groups:
        if group.finished:
            identity, readings = load(group)
            found.setdefault(identity, []).append(readings)
    return [_panel(readings, reference) for readings in found.values()]


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for being several (Holm 1979): below 5 %, any of them is false in 5 %."""
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Give the places of the points (cost, loss) that no other is at least as good in both."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def _panel(readings: list[Readings], label: str | None) -> Panel:
    labels = [r.group.label for r in readings]
    plain = [i for i, r in enumerate(readings) if _without_memory(r)]
    # A study of several corpora names one reference; the other corpora go without that name.
    reference = labels.index(label) if label in labels else (plain or [0])[0]
    levels = tuple(r.level() for r in readings)
    best = _lowest(levels)
    against_best = _compare(readings, best)
    ties = {best} | {i for i in range(len(readings)) if i != best and not _beaten(against_best, i)}
    return Panel(
        readings=tuple(readings),
        reference=reference,
        levels=levels,
        against_reference=_compare(readings, reference),
        ties=frozenset(ties),
    )


def _compare(readings: Sequence[Readings], other: int) -> dict[int, Paired]:
    """Compare all groups with one, where they have seeds in common."""
    base = readings[other]
    found: dict[int, tuple[Estimate, int]] = {}
    for i, r in enumerate(readings):
        seeds = sorted(set(r.seeds) & set(base.seeds))
        if i != other and seeds:
            own, others = (x.own[[x.seeds.index(s) for s in seeds]] for x in (r, base))
            difference = own.astype(np.float64) - others
            found[i] = several_seeds(difference, r.table.document), len(seeds)
    corrected = holm([_p_value(estimate) for estimate, _ in found.values()])
    return {
        i: Paired(estimate=estimate, seeds=seeds, p=p)
        for (i, (estimate, seeds)), p in zip(found.items(), corrected, strict=True)
    }


def _p_value(difference: Estimate) -> float:
    """Take the interval for that of a normal law; a single document tells nothing."""
    error = (difference.high - difference.low) / (2 * 1.96)
    if math.isnan(error):
        return 1.0
    if error == 0:
        return float(difference.mean == 0)
    return math.erfc(abs(difference.mean) / error / math.sqrt(2))


def _beaten(against_best: dict[int, Paired], i: int) -> bool:
    return i in against_best and against_best[i].claimed


def _lowest(levels: Sequence[Estimate]) -> int:
    return min(range(len(levels)), key=lambda i: levels[i].mean)


def _without_memory(readings: Readings) -> bool:
    result = readings.cells[0].result
    assert result is not None
    return result["memory"]["memory.injection"] == "none"
