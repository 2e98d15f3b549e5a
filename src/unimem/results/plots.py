"""Figures of a study. Losses are in nats per token, bands and bars are 95 % intervals."""

import math
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimem.results.canvas import (
    COLOURS,
    GREY,
    LOSS,
    Colours,
    bucket_ticks,
    by_right_end,
    new_figure,
    position_label,
    save,
)

FEW_POINTS = 30
"""Points up to which a learning curve has a mark at each."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A loss at `x`, with its interval (NaN if it is not known)."""

    x: float
    mean: float
    low: float
    high: float


def plot_against(
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    lines: Mapping[str, Sequence[Point]],
    levels: Mapping[str, Point],
    colours: Colours,
    title: str = "",
) -> None:
    """Draw losses against a number that varies; `levels` do not have it: horizontal lines.

    Levels have the colour of their setting; a line is of many settings and has another colour.
    """
    figure, axes = new_figure()
    taken = {colours.get(label, GREY) for label in levels}
    others = (colour for colour in COLOURS if colour not in taken)
    known = sorted({point.x for points in lines.values() for point in points})
    steps = grow_by_factors(known)
    place = {x: i if steps else x for i, x in enumerate(known)}
    if steps or (len(known) <= 24 and all(x == int(x) for x in known)):
        axes.set_xticks(list(place.values()), [f"{x:g}" for x in known])
    # Side by side, so that the intervals of several lines do not cover each other.
    step = 0.01 * (place[known[-1]] - place[known[0]])
    for i, ((label, points), colour) in enumerate(zip(lines.items(), others, strict=False)):
        xs = [place[point.x] + (i - (len(lines) - 1) / 2) * step for point in points]
        axes.plot(xs, [p.mean for p in points], "o-", color=colour, markersize=4, label=label)
        axes.vlines(xs, [p.low for p in points], [p.high for p in points], color=colour)
    for label, level in levels.items():
        colour = colours.get(label, GREY)
        axes.axhline(level.mean, color=colour, linestyle="--", label=label)
        axes.axhspan(level.low, level.high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(textwrap.fill(ylabel, 40))
    axes.set_title(title, fontsize=9)
    save(figure, path, axes)


def plot_rows(
    path: Path, *, xlabel: str, rows: Mapping[str, Point], colours: Colours, title: str = ""
) -> None:
    """Draw a row for each setting: its difference from the reference, which is the line at 0."""
    figure, axes = new_figure((7, 1.2 + 0.3 * len(rows)))
    for y, (label, point) in enumerate(rows.items()):
        colour = colours.get(label, GREY)
        axes.plot(point.mean, y, "o", color=colour, markersize=5)
        axes.hlines(y, point.low, point.high, color=colour)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [textwrap.fill(label, 40) for label in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(xlabel)
    axes.set_title(title, fontsize=9)
    save(figure, path)


def plot_shares(
    path: Path, *, xlabel: str, rows: Mapping[str, Mapping[str, Point]], title: str = ""
) -> None:
    """Draw a row for each setting with a mark for each way in which it was read, in percent.

    Where some are below -100, the axis is logarithmic there: all marks stay at their numbers.
    """
    figure, axes = new_figure((7, 1.6 + 0.3 * len(rows)))
    ways = dict.fromkeys(way for marks in rows.values() for way in marks)
    for way, colour, marker in zip(ways, COLOURS, "os^", strict=False):
        places = [(y, marks[way]) for y, marks in enumerate(rows.values()) if way in marks]
        ys = [y for y, _ in places]
        means = [point.mean for _, point in places]
        axes.plot(means, ys, marker, color=colour, markersize=5, linestyle="none", label=way)
        low, high = ([getattr(point, end) for _, point in places] for end in ("low", "high"))
        axes.hlines(ys, low, high, color=colour)
    points = [point for marks in rows.values() for point in marks.values()]
    ends = [x for p in points for x in (p.mean, p.low, p.high) if math.isfinite(x)]
    if min(ends, default=0.0) < -100:
        xlabel += _logarithmic_below_100(axes, min(ends), max(ends))
    for line in (0, 100):
        axes.axvline(line, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [textwrap.fill(label, 40) for label in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(xlabel)
    axes.set_title(title, fontsize=9)
    save(figure, path, axes)


def _logarithmic_below_100(axes: Any, least: float, most: float) -> str:
    """Make the axis of shares logarithmic below -100, and say so for its label.

    `least` and `most` are the ends of what is drawn on it.
    """
    decades = math.log10(-least / 100)
    # So that the linear part from -100 to 100 takes two thirds of the width or more.
    axes.set_xscale("symlog", linthresh=100, linscale=0.9 * max(decades, 0.3))
    powers = range(2, math.ceil(decades + 2) + 1)
    far = [-(10.0**power) for power in powers[:: -(-len(powers) // 4)]]
    ticks = sorted({*far, -50.0, 0.0, 50.0, 100.0})
    axes.set_xlim(1.15 * min(least, -110), max(most, 105) * 1.05)
    shown = [tick for tick in ticks if tick >= axes.get_xlim()[0]]
    axes.set_xticks(shown, [f"{tick:,.0f}" if tick > -1e6 else f"{tick:.0e}" for tick in shown])
    axes.minorticks_off()
    axes.axvline(-100, color=GREY, linewidth=0.8, linestyle=":")
    return ", logarithmic below -100"


def plot_heat_map(
    path: Path,
    *,
    labels: tuple[str, str],
    losses: Mapping[tuple[float, float], float],
    bold: Collection[tuple[float, float]],
) -> None:
    """Draw the loss over two numbers that vary: (x, y) -> loss; what is missing stays white."""
    xs, ys = (sorted({place[i] for place in losses}) for i in (0, 1))
    figure, axes = new_figure((max(5, 1.5 + 0.8 * len(xs)), max(3, 1 + 0.5 * len(ys))))
    grid = [[losses.get((x, y), float("nan")) for x in xs] for y in ys]
    image = axes.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
    middle = (min(losses.values()) + max(losses.values())) / 2
    for (x, y), loss in losses.items():
        axes.text(
            xs.index(x),
            ys.index(y),
            f"{loss:.4f}",
            ha="center",
            va="center",
            color="white" if loss < middle else "black",
            fontsize=9,
            fontweight="bold" if (x, y) in bold else "normal",
        )
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    figure.colorbar(image, label=LOSS)
    axes.grid(visible=False)
    save(figure, path)


def plot_positions(
    path: Path,
    *,
    edges: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    bounds: Mapping[str, Sequence[float]],
    colours: Colours,
    title: str = "",
) -> None:
    """Draw the loss by position in the document, one value for each bucket, and the best ones."""
    figure, axes = new_figure()
    places = range(len(edges) - 1)
    for label in by_right_end(curves):
        axes.plot(places, curves[label], "o-", color=colours[label], markersize=3.5, label=label)
    for (label, losses), style in zip(bounds.items(), ("--", ":"), strict=False):
        axes.plot(places, losses, style, color="black", linewidth=1.2, label=label)
    bucket_ticks(axes, edges)
    axes.set_xlabel(position_label(edges))
    axes.set_ylabel(LOSS)
    axes.set_title(title, fontsize=9)
    save(figure, path, axes, beside=True)


def plot_cost(
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    points: Mapping[str, Point],
    front: Sequence[str],
    colours: Colours,
    title: str = "",
) -> None:
    """Draw losses against a cost; the Pareto `front` is joined by steps.

    Points that have no colour of their own are grey, and named where they are on the front.
    """
    figure, axes = new_figure()
    for label, point in points.items():
        colour = colours.get(label, GREY)
        name = label if label in colours else None
        axes.plot(point.x, point.mean, "o", color=colour, label=name)
        axes.vlines(point.x, point.low, point.high, color=colour)
        if name is None and label in front:
            place = (point.x, point.mean)
            axes.annotate(label, place, (4, 4), textcoords="offset points", fontsize=7)
    steps = [points[label] for label in front]
    axes.step(
        [point.x for point in steps],
        [point.mean for point in steps],
        where="post",
        color="black",
        linewidth=1,
        linestyle=":",
        label="Pareto front",
        zorder=0,
    )
    axes.set_xlabel(xlabel)
    axes.set_ylabel(textwrap.fill(ylabel, 40))
    axes.set_title(title, fontsize=9)
    save(figure, path, axes)


def plot_learning(
    path: Path,
    *,
    curves: Iterable[tuple[str, Sequence[tuple[float, float]]]],
    colours: Colours,
    title: str = "",
) -> None:
    """Draw the training loss against steps; curves of one label, its seeds, share a colour.

    Few points of a curve have marks: a line alone would tell more than was recorded.
    """
    figure, axes = new_figure()
    named: set[str] = set()
    for label, points in curves:
        xs, ys = zip(*points, strict=True)
        name = None if label in named else label
        named.add(label)
        mark = "o" if len(xs) <= FEW_POINTS else None
        look = {"linewidth": 1, "alpha": 0.8, "marker": mark, "markersize": 3}
        axes.plot(xs, ys, color=colours[label], label=name, **look)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"training {LOSS}")
    axes.set_title(title, fontsize=9)
    save(figure, path, axes)


def grow_by_factors(xs: Sequence[float]) -> bool:
    """Whether a few sorted numbers are to stand one step apart, as powers of two are."""
    smallest = min((x for x in xs if x > 0), default=1)
    in_a_row = all(b - a == 1 for a, b in zip(xs, xs[1:], strict=False))
    return len(xs) <= 16 and not in_a_row and xs[-1] / smallest >= 16
