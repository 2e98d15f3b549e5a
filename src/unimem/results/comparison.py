"""The settings of a study held against each other, on the tokens that all of them read.

Shapes: K seeds, N tokens of all documents together.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from unimem.evaluation.statistics import SeedEstimate, position_edges, several_seeds
from unimem.results.losses import Readings, load
from unimem.results.select import Select, in_words
from unimem.results.study import Group, differing, labelled

ALPHA = 0.05
SEEDS = 3
"""Seeds of each side from which on a difference can be claimed; Student's t over fewer is of no
use: over two it needs a difference of 13 standard errors."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two groups, on the same tokens and common seeds.

    p: how often a difference at least as large comes of chance alone where there is none, over
    seeds and documents, after Holm's correction for the comparisons made together. With one seed it
    is over documents alone.
    """

    estimate: SeedEstimate
    p: float

    @property
    def seeds(self) -> int:
        """The common seeds."""
        return self.estimate.seeds

    @property
    def claimed(self) -> bool:
        """Whether this is a difference of settings: clear of chance, and of enough seeds."""
        return self.p < ALPHA and self.seeds >= SEEDS


@dataclass(frozen=True, kw_only=True)
class CorpusComparison:
    """Groups that read the same tokens of one corpus.

    waiting: groups of this corpus without a finished cell. against_reference: differences of all
    others from the reference. ties: the groups that cannot be told from the one with the lowest
    loss, which is one of them; by their place in `readings`.
    """

    name: str
    readings: tuple[Readings, ...]
    unfinished: tuple[Group, ...]
    reference: int
    levels: tuple[SeedEstimate, ...]
    against_reference: dict[int, Difference]
    ties: frozenset[int]

    @property
    def best(self) -> int:
        """The group with the lowest loss."""
        return lowest(self.levels, range(len(self.levels)))

    @property
    def labels(self) -> list[str]:
        """The names of the groups, as in `readings`."""
        return [r.group.label for r in self.readings]

    @property
    def groups(self) -> list[Group]:
        """All groups of this corpus, finished or not."""
        return [*(r.group for r in self.readings), *self.unfinished]

    @property
    def corpus(self) -> str:
        """The corpus in words."""
        return _summary(self.readings[0])

    def edges(self) -> list[int]:
        """Return the edges of the position buckets, in segments of the reference."""
        reference = self.readings[self.reference]
        segment_length = reference.recorded("evaluation", "segment_length")
        assert segment_length is not None
        return position_edges(int(reference.table.position.max()) + 1, int(segment_length))

    def relative(self, i: int) -> SeedEstimate:
        """Estimate by how much group `i` is above the reference; NaN if they share no seed."""
        if i in self.against_reference:
            return self.against_reference[i].estimate
        level, value = self.levels[i], 0.0 if i == self.reference else math.nan
        return replace(level, mean=value, low=value, high=value)

    def by_position(self, nll: np.ndarray) -> list[float]:
        """Return the mean of `nll` [N] in every bucket edges[i] <= position < edges[i + 1]."""
        edges = self.edges()
        bucket = np.digitize(self.readings[0].table.position, edges) - 1
        sums, counts = np.bincount(bucket, nll.astype(np.float64)), np.bincount(bucket)
        return (sums / counts).tolist()


def comparisons(groups: Sequence[Group], reference: Select | None = None) -> list[CorpusComparison]:
    """Load what the groups read, and compare those that read the same.

    The reference is the first group that is selected; without one, the first without memory, or
    the first. Without a finished cell a group is only named.

    Raises ValueError if there is no such group, or the seeds of a group read different documents.
    """
    if reference is not None and not any(reference.matches(group.overrides) for group in groups):
        labels = ", ".join(group.label for group in groups)
        raise ValueError(f"report.reference: no setting is {reference}; there are {labels}")
    found: dict[str, list[Readings]] = {}
    for group in groups:
        if group.finished:
            identity, readings = load(group)
            found.setdefault(identity, []).append(readings)
    unfinished = [group for group in groups if not group.finished]
    split = set(differing([group.overrides for group in groups]))
    made = [_comparison(readings, unfinished, reference, split) for readings in found.values()]
    names = [comparison.name for comparison in made]
    return [
        replace(comparison, name=f"{comparison.name} ({i + 1})")
        if names.count(comparison.name) > 1
        else comparison
        for i, comparison in enumerate(made)
    ]


def difference(a: Readings, b: Readings) -> SeedEstimate | None:
    """Estimate the mean loss of `a` above that of `b`, over their common seeds, if any."""
    seeds = common_seeds([a, b])
    if not seeds:
        return None
    own, others = (r.of(seeds) for r in (a, b))
    return several_seeds(own.astype(np.float64) - others, a.table.document)


def common_seeds(readings: Sequence[Readings]) -> list[int]:
    """Return the seeds that all of them have."""
    return sorted(set.intersection(*(set(r.seeds) for r in readings)))


def compare(
    readings: Sequence[Readings], base: int, others: Iterable[int]
) -> dict[int, Difference]:
    """Hold the others against one group, where they have seeds in common."""
    found: dict[int, SeedEstimate] = {}
    for i in others:
        estimate = difference(readings[i], readings[base])
        if i != base and estimate is not None:
            found[i] = estimate
    corrected = holm([estimate.p for estimate in found.values()])
    return {
        i: Difference(estimate=estimate, p=p)
        for (i, estimate), p in zip(found.items(), corrected, strict=True)
    }


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for being several (Holm 1979).

    Where each p is right, those that come out below 5 % hold a false one in at most 5 % of studies.
    """
    corrected, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def p_words(p: float) -> str:
    """Write a p-value; no law that it rests on says anything of the far tails."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def lowest(levels: Sequence[SeedEstimate], places: Iterable[int]) -> int:
    """Return the place of the lowest mean among some; what has diverged comes last."""
    return min(places, key=lambda i: _finite_or_last(levels[i].mean))


def _finite_or_last(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of the points (cost, loss) that no other is at least as good in both."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[i][1] < points[front[-1]][1]:
            front.append(i)
    return front


def _comparison(
    readings: list[Readings], unfinished: Sequence[Group], chosen: Select | None, split: set[str]
) -> CorpusComparison:
    corpora = [_corpus_overrides(r.group) for r in readings]
    unfinished = [group for group in unfinished if _corpus_overrides(group) in corpora]
    named = [*(r.group for r in readings), *unfinished]
    # The only one of its corpus keeps the name that tells it from those of others.
    named = labelled(named) if len(named) > 1 else named
    readings = [replace(r, group=group) for r, group in zip(readings, named, strict=False)]
    selected = [i for i, r in enumerate(readings) if chosen and chosen.matches(r.group.overrides)]
    plain = [i for i, r in enumerate(readings) if _without_memory(r)]
    levels = tuple(r.level() for r in readings)
    everyone = range(len(readings))
    finite = [i for i in everyone if math.isfinite(levels[i].mean)]
    # A study of several corpora may name one reference; the other corpora go without that name.
    reference = [*selected, *(i for i in plain if i in finite), *finite, 0][0]
    best = lowest(levels, everyone)
    against_best = compare(readings, best, everyone)
    ties = {i for i in finite if i not in against_best or not against_best[i].claimed}
    return CorpusComparison(
        name=_name(readings, split),
        readings=tuple(readings),
        unfinished=tuple(named[len(readings) :]),
        reference=reference,
        levels=levels,
        against_reference=compare(readings, reference, everyone),
        ties=frozenset(ties),
    )


def _name(readings: Sequence[Readings], split: set[str]) -> str:
    """Name the corpus, with what tells it from others of that name in the study."""
    shared = set.intersection(*(set(_corpus_overrides(r.group)) for r in readings))
    own = {key: value for key, value in sorted(shared) if key in split and key != "data"}
    text = in_words(own)
    return _summary(readings[0]).split(":")[0] + (f", {text}" if text else "")


def _corpus_overrides(group: Group) -> list[tuple[str, str]]:
    """Return the overrides that decide which tokens are read."""
    return sorted(
        (key, value)
        for key, value in group.overrides.items()
        if key.split(".")[0] in ("data", "evaluation")
    )


def _summary(readings: Readings) -> str:
    result = readings.cells[0].result
    assert result is not None
    return result["corpus"]["summary"]


def _without_memory(readings: Readings) -> bool:
    result = readings.cells[0].result
    assert result is not None
    return result["memory"]["memory.injection"] == "none"
