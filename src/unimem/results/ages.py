"""Which ages of memory are read: attention by the distance in tokens from query to slot.

Shapes: K seeds, L layers, B buckets edges[i] <= distance < edges[i + 1].
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unimem.results.blocks import Picture
from unimem.results.canvas import Colours, new_figure, save
from unimem.results.comparison import Panel
from unimem.results.readings import Readings

TICKS = [step * 10.0**power for power in range(-4, 5) for step in (1, 2, 5)]


@dataclass(frozen=True, kw_only=True)
class Ages:
    """How a setting reads memory, the mean of its seeds.

    share: of a query's attention, [L, B]. slots: in memory for each query, [L, B].
    """

    edges: list[int]
    share: np.ndarray
    slots: np.ndarray

    def relative(self) -> np.ndarray:
        """Give the attention for each slot, as a multiple of what every slot had if all were alike.

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
    panel: Panel, shown: Sequence[int], colours: Colours, path: Path
) -> Iterator[Picture]:
    """Draw which ages the settings read, in the order of `shown`, as many as can be told apart.

    Those without a colour are left out.
    """
    found = {panel.labels[i]: a for i in shown if (a := ages_of(panel.readings[i])) is not None}
    if not found:
        return
    first, *_ = found.values()
    # Buckets are doublings of the segment: of other segments they would be other ages.
    alike = {label: ages for label, ages in found.items() if ages.edges[1] == first.edges[1]}
    curves = {label: ages for label, ages in alike.items() if label in colours}
    if not curves:
        return
    plot_ages(path, curves, colours, title=panel.name)
    left = len(found) - len(curves)
    dropped = f" {left} of {len(found)} settings are left out here." if left else ""
    band = any(len(ages.share) > 1 for ages in curves.values())
    yield Picture(
        path,
        "Which memory ages are read: above, the share of a query's attention that falls on slots "
        f"of an age{', mean of the layers and their range' if band else ''}; below, the same for "
        "each slot, where 1 is reading all slots of memory alike. Means of the seeds; queries "
        f"without memory are not counted.{dropped}",
    )


def plot_ages(path: Path, curves: Mapping[str, Ages], colours: Colours, title: str = "") -> None:
    """Draw shares of attention by age, and below them what each slot gets."""
    figure, (top, bottom) = new_figure((6, 5.5), nrows=2, sharex=True, height_ratios=(3, 2))
    for label, ages in curves.items():
        colour = colours[label]
        places = np.arange(len(ages.edges) - 1)
        share = 100 * ages.share
        top.plot(places, share.mean(0), "o-", color=colour, markersize=4, label=label)
        if len(share) > 1:
            low, high = share.min(0), share.max(0)
            top.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        bottom.plot(places, ages.relative(), "o-", color=colour, markersize=4)
    bottom.axhline(1, color="black", linewidth=1, linestyle="--")
    bottom.set_yscale("log", subs=[])
    limits = bottom.get_ylim()
    ticks = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
    bottom.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    edges = max((ages.edges for ages in curves.values()), key=len)
    ranges = [f"{a}\u2013{b - 1}" for a, b in zip(edges, edges[1:], strict=False)]
    bottom.set_xticks(range(len(ranges)), ranges, rotation=30 if len(ranges) > 6 else 0)
    bottom.set_xlabel("distance from query to memory slot (tokens)")
    top.set_ylabel("share of attention (%)")
    bottom.set_ylabel("attention for each slot\n(1: all alike)")
    top.set_ylim(bottom=0)
    top.set_title(title, fontsize=9)
    save(figure, path, top)


def _padded(layers: Mapping[str, Sequence[float]], size: int) -> Any:
    """Put the layers' buckets [L, size] together; the oldest of some runs are empty in others."""
    return [[*buckets, *[0.0] * (size - len(buckets))] for buckets in layers.values()]
