"""Figures of a study. Losses are in nats per token, bands and bars are 95 % intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimem.results.plots import COLOURS

MOST = 8
"""Curves that can still be told apart in one figure."""

LOSS = "loss (nats per token)"
# Okabe and Ito's colours that are seen on white, a wine red and a grey.
_GREY = "#999999"
_COLOURS = (*COLOURS, "#E69F00", "#56B4E9", "#882255", _GREY)


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
) -> None:
    """Draw losses against a number that varies; `levels` do not have it: horizontal lines."""
    figure, axes = _figure()
    colours = iter(_COLOURS)
    for (label, points), colour in zip(lines.items(), colours, strict=False):
        xs = [point.x for point in points]
        axes.plot(xs, [point.mean for point in points], "o-", color=colour, label=label)
        axes.vlines(xs, [p.low for p in points], [p.high for p in points], color=colour)
        if _few_integers(xs):
            axes.set_xticks(sorted(set(xs)))
    for (label, level), colour in zip(levels.items(), colours, strict=False):
        axes.axhline(level.mean, color=colour, linestyle="--", label=label)
        axes.axhspan(level.low, level.high, color=colour, alpha=0.1, linewidth=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    _save(figure, axes, path)


def plot_heat_map(
    path: Path,
    *,
    labels: tuple[str, str],
    losses: Mapping[tuple[float, float], float],
) -> None:
    """Draw the loss over two numbers that vary: (x, y) -> loss; what is missing stays white."""
    figure, axes = _figure()
    xs, ys = (sorted({place[i] for place in losses}) for i in (0, 1))
    grid = [[losses.get((x, y), float("nan")) for x in xs] for y in ys]
    image = axes.imshow(grid, cmap="viridis", aspect="auto", origin="lower")
    middle = (min(losses.values()) + max(losses.values())) / 2
    for (x, y), loss in losses.items():
        colour = "white" if loss < middle else "black"
        place = xs.index(x), ys.index(y)
        axes.text(*place, f"{loss:.4f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(xs)), [f"{x:g}" for x in xs])
    axes.set_yticks(range(len(ys)), [f"{y:g}" for y in ys])
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    figure.colorbar(image, label=LOSS)
    axes.grid(visible=False)
    figure.savefig(path, dpi=150)


def plot_positions(
    path: Path,
    *,
    edges: Sequence[int],
    curves: Mapping[str, Sequence[float]],
    bounds: Mapping[str, Sequence[float]],
) -> None:
    """Draw the loss by position in the document, one value for each bucket, and the best ones."""
    figure, axes = _figure()
    places = range(len(edges) - 1)
    for (label, losses), colour in zip(curves.items(), _COLOURS, strict=False):
        axes.plot(places, losses, "o-", color=colour, markersize=3.5, label=label)
    for (label, losses), style in zip(bounds.items(), ("--", ":"), strict=False):
        axes.plot(places, losses, style, color="black", linewidth=1.2, label=label)
    shown = range(0, len(edges), -(-(len(edges) - 1) // 8))
    axes.set_xticks([i - 0.5 for i in shown], [str(edges[i]) for i in shown])
    axes.set_xlabel("position in the document (tokens)")
    axes.set_ylabel(LOSS)
    _save(figure, axes, path)


def plot_cost(
    path: Path, *, xlabel: str, ylabel: str, points: Mapping[str, Point], front: Sequence[str]
) -> None:
    """Draw losses against a cost; the Pareto `front` is joined by steps.

    All points are named, or only the front if they are too many.
    """
    figure, axes = _figure()
    named = points if len(points) <= MOST else front
    colours = {label: _COLOURS[i % MOST] for i, label in enumerate(named)}
    for label, point in points.items():
        colour = colours.get(label, _GREY)
        name = label if label in colours else None
        axes.plot(point.x, point.mean, "o", color=colour, label=name)
        axes.vlines(point.x, point.low, point.high, color=colour)
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
    axes.set_ylabel(ylabel)
    _save(figure, axes, path)


def plot_learning(
    path: Path, *, curves: Iterable[tuple[str, Sequence[tuple[float, float]]]]
) -> None:
    """Draw the training loss against steps; curves of one label, its seeds, share a colour."""
    figure, axes = _figure()
    colours: dict[str, str] = {}
    for label, points in curves:
        new = label not in colours
        colour = colours.setdefault(label, _COLOURS[len(colours) % MOST])
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=colour, linewidth=1, alpha=0.8, label=label if new else None)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(f"training {LOSS}")
    _save(figure, axes, path)


def _figure() -> tuple[Any, Any]:
    # Importing pyplot takes a second and picks a display; figures are drawn without one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, axes: Any, path: Path) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 2 if max(map(len, labels)) < 45 else 1
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )
    figure.savefig(path, dpi=150)


def _few_integers(xs: Sequence[float]) -> bool:
    return len(xs) <= 12 and all(x == int(x) for x in xs) and max(xs) - min(xs) < 32
