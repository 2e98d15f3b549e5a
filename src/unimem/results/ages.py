"""Which ages of memory are read: attention by the distance in tokens from query to slot.

Shapes: K seeds, L layers, B buckets edges[i] <= distance < edges[i + 1].
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unimem.results.canvas import Colours, by_right_end, new_figure, save
from unimem.results.comparison import CorpusComparison
from unimem.results.losses import Readings
from unimem.results.render.blocks import Picture

TICKS = [step * 10.0**power for power in range(-4, 5) for step in (1, 2, 5)]

CLOSE_TICKS = (0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.5)
"""Ticks of a range around 1 that holds hardly any of the others."""
FLOOR = 1e-3
"""Attention per slot below which none is told apart on the logarithmic axis."""


@dataclass(frozen=True, kw_only=True)
class Ages:
    """How a setting reads memory, the mean of its seeds.

    share: of a query's attention, [L, B]. slots: in memory for each query, [L, B].
    """

    edges: list[int]
    share: np.ndarray
    slots: np.ndarray

    def relative(self) -> np.ndarray:
        """Return the attention for each slot, as a multiple of uniform attention.

        [B], mean over layers; NaN where there are no slots.
        """
        share, slots = self.share.mean(0), self.slots.mean(0)
        alike = share.sum() * slots / slots.sum()
        return np.divide(share, alike, out=np.full_like(share, np.nan), where=alike > 0)


def ages_of(readings: Readings) -> Ages | None:
    """Read the ages that were recorded for the seeds; None if there are none."""
    results = [cell.result["evaluation"] for cell in readings.cells if cell.result is not None]
    records = [ages for result in results if (ages := result.get("ages")) is not None]
    if not records:
        return None
    edges = max((record["edges"] for record in records), key=len)
    share, slots = (
        np.mean([_padded(record[name], len(edges) - 1) for record in records], axis=0)
        for name in ("share", "slots")
    )
    return Ages(edges=edges, share=share, slots=slots)


def draw_ages(
    comparison: CorpusComparison,
    shown: Sequence[int],
    colours: Colours,
    path: Path,
    *,
    title: str = "",
) -> Iterator[Picture]:
    """Draw which ages the settings read, in the order of `shown`, as many as can be told apart.

    Those without a colour are left out.
    """
    found = {
        comparison.labels[i]: a for i in shown if (a := ages_of(comparison.readings[i])) is not None
    }
    if not found:
        return
    first, *_ = found.values()
    # Buckets are doublings of the segment: of other segments they would be other ages.
    alike = {label: ages for label, ages in found.items() if ages.edges[1] == first.edges[1]}
    curves = {label: ages for label, ages in alike.items() if label in colours}
    if not curves:
        return
    plot_ages(path, curves, colours, title=title or comparison.name)
    left = len(found) - len(curves)
    dropped = f" {left} of {len(found)} settings are left out here." if left else ""
    several = any(len(ages.share) > 1 for ages in curves.values())
    layers = f", mean of the layers{' and their range' if _banded(curves) else ''}"
    low = any((ages.relative() < FLOOR).any() for ages in curves.values())
    floor = f", and a triangle at the bottom edge stands for less than {FLOOR:g}" if low else ""
    yield Picture(
        path,
        "Attention by the age of memory: above, the share of a query's attention that falls on "
        f"slots of an age{layers if several else ''}; below, the same per slot, where 1 is "
        f"uniform attention over memory{floor}. Means of the seeds; queries without memory are "
        f"not counted.{dropped}",
    )


def plot_ages(path: Path, curves: Mapping[str, Ages], colours: Colours, title: str = "") -> None:
    """Draw shares of attention by age, and below them what each slot gets.

    Below `FLOOR` the line of what each slot gets is broken, with a triangle at the bottom edge.
    """
    figure, (top, bottom) = new_figure((7, 5.5), nrows=2, sharex=True, height_ratios=(3, 2))
    banded = _banded(curves)
    below: list[tuple[np.ndarray, str]] = []
    for label in by_right_end(
        {label: ages.share.mean(0).tolist() for label, ages in curves.items()}
    ):
        ages, colour = curves[label], colours[label]
        places = np.arange(len(ages.edges) - 1)
        share = 100 * ages.share
        top.plot(places, share.mean(0), "o-", color=colour, markersize=4, label=label)
        if banded and len(share) > 1:
            low, high = share.min(0), share.max(0)
            top.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        each = ages.relative()
        drawn = np.where(each < FLOOR, np.nan, each)
        bottom.plot(places, drawn, "o-", color=colour, markersize=4)
        if (each < FLOOR).any():
            below.append((places[each < FLOOR], colour))
    bottom.axhline(1, color="black", linewidth=1, linestyle="--")
    bottom.set_yscale("log", subs=[])
    limits = bottom.get_ylim()
    for places, colour in below:
        at = np.full(len(places), limits[0])
        bottom.plot(places, at, "v", color=colour, markersize=6, clip_on=False)
    bottom.set_ylim(limits)
    ticks = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
    if len(ticks) < 3:
        ticks = [tick for tick in CLOSE_TICKS if limits[0] <= tick <= limits[1]]
    bottom.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    edges = max((ages.edges for ages in curves.values()), key=len)
    ranges = [f"{a}\u2013{b - 1}" for a, b in zip(edges, edges[1:], strict=False)]
    bottom.set_xticks(range(len(ranges)), ranges, rotation=30 if len(ranges) > 6 else 0)
    bottom.set_xlabel("distance from query to memory slot (tokens)")
    top.set_ylabel("share of attention (%)")
    bottom.set_ylabel("attention per slot\n(1: uniform)")
    top.set_ylim(bottom=0)
    top.set_title(title, fontsize=9)
    save(figure, path, top, beside=True)


def _banded(curves: Mapping[str, Ages]) -> bool:
    """Whether the ranges of the layers are drawn; those of many curves hide each other."""
    return len(curves) <= 3 and any(len(ages.share) > 1 for ages in curves.values())


def _padded(layers: Mapping[str, Sequence[float]], size: int) -> Any:
    """Put the layers' buckets [L, size] together; the oldest of some runs are empty in others."""
    return [[*buckets, *[0.0] * (size - len(buckets))] for buckets in layers.values()]
