"""Which figures a study gets, and what is drawn in them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from unimem.evaluation.statistics import Estimate
from unimem.results.collect import read_metrics
from unimem.results.comparison import Panel, pareto_front
from unimem.results.page import Picture
from unimem.results.study import Group, number
from unimem.results.study_plots import (
    LOSS,
    MOST,
    Point,
    plot_against,
    plot_cost,
    plot_heat_map,
    plot_learning,
    plot_positions,
)

RELATIVE = "difference from the reference (nats per token)"
BOUNDS = {
    "bound_none": "best possible without memory",
    "bound_unlimited": "best possible with memory",
}


def draw_figures(panel: Panel, folder: Path, prefix: str) -> Iterator[Picture]:
    """Draw the figures of a panel to `folder`, and give them; file names begin with `prefix`."""
    yield from _varied_numbers(panel, folder, prefix)
    yield _positions(panel, folder / f"{prefix}position.png")
    for name, cost, what in (
        ("evaluation", evaluation_cost(panel), "seconds to read 1000 held-out tokens"),
        ("training", training_cost(panel), "seconds of training"),
    ):
        if all(cost):
            yield _cost(panel, cost, what, folder / f"{prefix}cost_{name}.png")
    yield from _learning(panel, folder / f"{prefix}learning.png")


def evaluation_cost(panel: Panel) -> list[float]:
    """Give the seconds to read 1000 held-out tokens, the median of the seeds, of every group."""
    speeds = [
        r.recorded("evaluation", "scores", "own", "tokens_per_second") for r in panel.readings
    ]
    return [1000 / speed if speed else 0.0 for speed in speeds]


def training_cost(panel: Panel) -> list[float]:
    """Give the seconds of training, the median of the seeds, of every group."""
    return [r.recorded("training_seconds") or 0.0 for r in panel.readings]


def _varied_numbers(panel: Panel, folder: Path, prefix: str) -> Iterator[Picture]:
    """Draw the loss over what varies, if that is one number, or two and nothing else."""
    axes = _axes([r.group for r in panel.readings])
    if len(axes) == 1:
        yield _loss_against(panel, axes[0], folder / f"{prefix}by_{axes[0]}.png")
        yield _gain_against(panel, axes[0], folder / f"{prefix}gain_by_{axes[0]}.png")
    if len(axes) != 2:
        return
    losses: dict[tuple[float, float], float] = {}
    for r, level in zip(panel.readings, panel.levels, strict=True):
        x, y = (number(r.group.varied.get(axis)) for axis in axes)
        if x is not None and y is not None:
            if (x, y) in losses:
                return
            losses[x, y] = level.mean
    path = folder / f"{prefix}heat_map.png"
    plot_heat_map(path, labels=(axes[0], axes[1]), losses=losses)
    yield Picture(path, f"Loss over {axes[0]} and {axes[1]}.")


def _axes(groups: Sequence[Group]) -> list[str]:
    """Give the settings of which several numbers were tried."""
    keys = dict.fromkeys(key for group in groups for key in group.varied)
    tried = {key: {number(group.varied.get(key)) for group in groups} - {None} for key in keys}
    return [key for key, numbers in tried.items() if len(numbers) > 1]


def _loss_against(panel: Panel, axis: str, path: Path) -> Picture:
    lines, levels = _split(panel, axis, panel.levels)
    plot_against(path, xlabel=axis, ylabel=LOSS, lines=lines, levels=levels)
    dropped = _dropped(len(lines | levels))
    return Picture(path, f"Loss by {axis}: intervals over seeds and documents.{dropped}")


def _gain_against(panel: Panel, axis: str, path: Path) -> Picture:
    relative = [panel.relative(i) for i in range(len(panel.readings))]
    lines, levels = _split(panel, axis, relative)
    plot_against(path, xlabel=axis, ylabel=RELATIVE, lines=lines, levels=levels)
    dropped = _dropped(len(lines | levels))
    label = panel.readings[panel.reference].group.label
    return Picture(path, f"The same as paired differences from {label}.{dropped}")


def _split(
    panel: Panel, axis: str, losses: Sequence[Estimate]
) -> tuple[dict[str, list[Point]], dict[str, Point]]:
    """Put the groups that have a number on `axis` on lines; the others are levels."""
    lines: dict[str, list[Point]] = {}
    levels: dict[str, Point] = {}
    for r, level in zip(panel.readings, losses, strict=True):
        x = number(r.group.varied.get(axis))
        if x is None:
            levels[r.group.label] = _point(0.0, level)
        else:
            rest = " ".join(f"{k}={v}" for k, v in r.group.varied.items() if k != axis)
            lines.setdefault(rest or "measured", []).append(_point(x, level))
    return {label: sorted(p, key=lambda p: p.x) for label, p in lines.items()}, levels


def _positions(panel: Panel, path: Path) -> Picture:
    curves = {
        panel.readings[i].group.label: panel.by_position(panel.readings[i].own.mean(0))
        for i in _shown(panel)
    }
    known = panel.readings[0].table.columns
    bounds = {
        label: panel.by_position(known[name]) for name, label in BOUNDS.items() if name in known
    }
    plot_positions(path, edges=panel.edges(), curves=curves, bounds=bounds)
    return Picture(path, f"Loss by position in the document.{_dropped(len(panel.readings))}")


def _cost(panel: Panel, cost: Sequence[float], what: str, path: Path) -> Picture:
    labels = [r.group.label for r in panel.readings]
    places = zip(cost, (level.mean for level in panel.levels), strict=True)
    front = [labels[i] for i in pareto_front(list(places))]
    points = {label: _point(cost[i], panel.relative(i)) for i, label in enumerate(labels)}
    plot_cost(path, xlabel=what, ylabel=RELATIVE, points=points, front=front)
    label = panel.readings[panel.reference].group.label
    said = f"Loss, from that of {label}, against {what}. On the Pareto front: {'; '.join(front)}."
    return Picture(path, said)


def _learning(panel: Panel, path: Path) -> Iterator[Picture]:
    curves = [
        (panel.readings[i].group.label, [(record["step"], record["loss"]) for record in metrics])
        for i in _shown(panel)
        for cell in panel.readings[i].cells
        if (metrics := read_metrics(cell.folder))
    ]
    if curves:
        plot_learning(path, curves=curves)
        yield Picture(path, f"Training, a line for each seed.{_dropped(len(panel.readings))}")


def _shown(panel: Panel) -> list[int]:
    """Give the places of the reference and of the lowest losses, as many as can be told apart."""
    order = sorted(range(len(panel.levels)), key=lambda i: panel.levels[i].mean)
    return [panel.reference, *(i for i in order if i != panel.reference)][:MOST]


def _dropped(count: int) -> str:
    return f" {count - MOST} of {count} settings are left out here." if count > MOST else ""


def _point(x: float, loss: Estimate) -> Point:
    return Point(x=x, mean=loss.mean, low=loss.low, high=loss.high)
