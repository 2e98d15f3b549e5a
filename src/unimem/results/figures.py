"""Which figures a study gets, and what is drawn in them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unimem.evaluation.statistics import Estimate
from unimem.results.ages import draw_ages
from unimem.results.canvas import MOST, Colours, colours_of
from unimem.results.collect import model_name
from unimem.results.comparison import Panel, pareto_front
from unimem.results.escape import as_file_name
from unimem.results.losses import CONTROLS
from unimem.results.plots import (
    Point,
    plot_against,
    plot_cost,
    plot_heat_map,
    plot_learning,
    plot_positions,
    plot_rows,
    plot_shares,
)
from unimem.results.render.blocks import Paragraph, Picture
from unimem.results.select import in_words, number
from unimem.runs.records import read_metrics
from unimem.words import counted

RELATIVE = "difference from {} (nats per token)"
LEAST_POINTS = 3
"""Points without which a learning curve is not drawn."""
ROWS = 40
"""Settings that a figure of one row each can hold."""
BOUNDS = {
    "bound_none": "best possible without memory",
    "bound_unlimited": "best possible with memory",
}


def colours_of_report(panels: Sequence[Panel]) -> Colours:
    """Assign colours to the settings of a report, the same in all its figures.

    Where there are more settings than colours, the reference and the lowest losses of each corpus
    have one, and all others are grey.
    """
    every = dict.fromkeys(label for panel in panels for label in panel.labels)
    shown = dict.fromkeys(panel.labels[i] for panel in panels for i in _shown(panel))
    return colours_of([*(every if len(every) <= MOST else shown)])


def draw_settings(panel: Panel, folder: Path, prefix: str, colours: Colours) -> Iterator[Picture]:
    """Draw the loss over what varies: over one number, over two, or a row for each setting.

    To `folder`; file names begin with `prefix`.
    """
    axes = _axes(panel)
    if not _finite(panel):
        return
    if len(axes) == 1:
        yield _gain_against(
            panel, axes[0], colours, folder / f"{prefix}gain_by_{as_file_name(axes[0])}.png"
        )
    elif len(axes) == 2 and (grid := _grid(panel, (axes[0], axes[1]))):
        yield _heat_map(panel, (axes[0], axes[1]), grid, folder / f"{prefix}heat_map.png")
    elif len(panel.readings) > 1:
        yield _rows(panel, folder / f"{prefix}settings.png", colours)
    if any(r.controls and r.gap_closed() for r in panel.readings):
        yield _shares(panel, folder / f"{prefix}gap.png")


def draw_readings(
    panel: Panel, folder: Path, prefix: str, colours: Colours
) -> Iterator[Picture | Paragraph]:
    """Draw losses by position, ages of memory, costs and training, in the same way."""
    if not _finite(panel):
        return
    yield _positions(panel, colours, folder / f"{prefix}position.png")
    shown, title = _by_loss(panel), _about(panel)
    yield from draw_ages(panel, shown, colours, folder / f"{prefix}ages.png", title=title)
    for name, cost, what in (
        ("evaluation", evaluation_cost(panel), "evaluation time (s per 1000 tokens)"),
        ("training", training_cost(panel), "training time (s)"),
    ):
        if all(cost):
            yield _cost(panel, cost, what, colours, folder / f"{prefix}cost_{name}.png")
    yield from _learning(panel, colours, folder / f"{prefix}learning.png")


def evaluation_cost(panel: Panel) -> list[float]:
    """Return the seconds to evaluate 1000 tokens, the median of the seeds, of every group."""
    speeds = [
        r.recorded("evaluation", "scores", "own", "tokens_per_second") for r in panel.readings
    ]
    return [1000 / speed if speed else 0.0 for speed in speeds]


def training_cost(panel: Panel) -> list[float]:
    """Return the seconds of training, the median of the seeds, of every group."""
    return [r.recorded("training_seconds") or 0.0 for r in panel.readings]


def _grid(panel: Panel, axes: tuple[str, str]) -> dict[tuple[float, float], int]:
    """Return the setting at every place of two numbers; nothing if a place has several."""
    grid: dict[tuple[float, float], int] = {}
    for i, (x, y) in enumerate(zip(*(_numbers(panel, axis) for axis in axes), strict=True)):
        if x is not None and y is not None:
            if (x, y) in grid:
                return {}
            grid[x, y] = i
    return grid


def _heat_map(
    panel: Panel, axes: tuple[str, str], grid: dict[tuple[float, float], int], path: Path
) -> Picture:
    losses = {place: panel.levels[i].mean for place, i in grid.items()}
    ties = [place for place, i in grid.items() if i in panel.ties]
    plot_heat_map(path, labels=axes, losses=losses, bold=ties)
    beside = [
        f"{label} {panel.levels[i].mean:.4f}"
        for i, label in enumerate(panel.labels)
        if i not in grid.values()
    ]
    told = f" Not on the map: {', '.join(beside)}." if beside else ""
    said = "in bold the lowest and those not significantly different from it"
    return Picture(path, f"Loss over {axes[0]} and {axes[1]}, {said}.{told}")


def _shares(panel: Panel, path: Path) -> Picture:
    """Draw the share of the gap that each setting closes, and that it would close without memory.

    Below -100 % the axis is logarithmic.
    """
    rows: dict[str, dict[str, Point]] = {}
    for i in _by_loss(panel)[:ROWS]:
        marks = {"own memory": panel.readings[i].gap_closed()}
        marks |= {words: panel.readings[i].gap_closed(use) for use, words in CONTROLS.items()}
        rows[panel.labels[i]] = {
            way: Point(x=0.0, mean=100 * e.mean, low=100 * e.low, high=100 * e.high)
            for way, e in marks.items()
            if e is not None and math.isfinite(e.mean)
        }
    plot_shares(path, xlabel="share of the gap closed (%)", rows=rows, title=_about(panel))
    return Picture(
        path,
        "Share of the gap between the best losses possible without memory (0) and with all of the "
        "document in memory (100) that the same weights close with their own memory, with memory "
        "off, and with another document's memory; below 0 is worse than the bound without memory.",
    )


def _rows(panel: Panel, path: Path, colours: Colours) -> Picture:
    shown = _by_loss(panel)[:ROWS]
    rows = {panel.labels[i]: _point(0.0, panel.relative(i)) for i in shown}
    reference = panel.labels[panel.reference]
    plot_rows(
        path, xlabel=RELATIVE.format(reference), rows=rows, colours=colours, title=_about(panel)
    )
    left = len(panel.readings) - len(shown)
    dropped = f" The {left} settings with the highest loss are left out here." if left else ""
    said = f"Paired differences from {reference}, the lowest loss first: below 0 is better."
    return Picture(path, f"{said}{dropped}")


def _axes(panel: Panel) -> list[str]:
    """Return the settings of which several numbers were tried."""
    keys = dict.fromkeys(key for r in panel.readings for key in r.group.varied)
    return [key for key in keys if len(set(_numbers(panel, key)) - {None}) > 1]


def _numbers(panel: Panel, setting: str) -> Sequence[float | None]:
    """Return every group's value as a number, None if it has none.

    Lists that all differ in length, as those of the layers with memory may, count by it.
    """
    texts = [r.group.varied.get(setting, "") for r in panel.readings]
    lengths = [len(text.split(",")) if text.startswith("[") else None for text in texts]
    known = [length for length in lengths if length is not None]
    return lengths if len(known) == len(set(known)) > 1 else [number(text) for text in texts]


def _title(panel: Panel, axis: str) -> str:
    lists = any(r.group.varied.get(axis, "").startswith("[") for r in panel.readings)
    return f"{axis} (how many)" if lists else axis


def _gain_against(panel: Panel, axis: str, colours: Colours, path: Path) -> Picture:
    relative = [panel.relative(i) for i in range(len(panel.readings))]
    lines, levels = _split(panel, axis, relative)
    label = panel.labels[panel.reference]
    title = _title(panel, axis)
    plot_against(
        path,
        xlabel=title,
        ylabel=RELATIVE.format(label),
        lines=lines,
        levels=levels,
        colours=colours,
        title=_about(panel),
    )
    dropped = _dropped(len(lines | levels))
    return Picture(path, f"Paired differences from {label} by {axis}: below 0 is better.{dropped}")


def _split(
    panel: Panel, axis: str, losses: Sequence[Estimate]
) -> tuple[dict[str, list[Point]], dict[str, Point]]:
    """Put the groups that have a number on `axis` on lines; the others are levels."""
    lines: dict[str, list[Point]] = {}
    levels: dict[str, Point] = {}
    for r, x, level in zip(panel.readings, _numbers(panel, axis), losses, strict=True):
        if not math.isfinite(level.mean):
            continue
        if x is None:
            levels[r.group.label] = _point(0.0, level)
        else:
            rest = in_words({k: v for k, v in r.group.varied.items() if k != axis})
            lines.setdefault(rest or axis, []).append(_point(x, level))
    return {label: sorted(p, key=lambda p: p.x) for label, p in lines.items()}, levels


def _positions(panel: Panel, colours: Colours, path: Path) -> Picture:
    curves = {
        panel.labels[i]: panel.by_position(panel.readings[i].own.mean(0))
        for i in _shown(panel)
        if panel.labels[i] in colours
    }
    known = panel.readings[0].table.columns
    bounds = {
        label: panel.by_position(known[name]) for name, label in BOUNDS.items() if name in known
    }
    plot_positions(
        path,
        edges=panel.edges(),
        curves=curves,
        bounds=bounds,
        colours=colours,
        title=_about(panel),
    )
    said = (
        "Loss by position in the document: mean over seeds and all tokens of each range of the "
        "axis. No intervals: they would show how documents differ, not how settings differ."
    )
    return Picture(path, f"{said}{_dropped(len(panel.readings))}")


def _cost(panel: Panel, cost: Sequence[float], what: str, colours: Colours, path: Path) -> Picture:
    labels = panel.labels
    known = _finite(panel)
    places = [(cost[i], panel.levels[i].mean) for i in known]
    front = [labels[known[i]] for i in pareto_front(places)]
    points = {labels[i]: _point(cost[i], panel.relative(i)) for i in known}
    label = panel.labels[panel.reference]
    plot_cost(
        path,
        xlabel=what,
        ylabel=RELATIVE.format(label),
        points=points,
        front=front,
        colours=colours,
        title=_about(panel),
    )
    said = f"Loss difference to {label} vs. {what}. On the Pareto front: {'; '.join(front)}."
    return Picture(path, said)


def _learning(panel: Panel, colours: Colours, path: Path) -> Iterator[Picture | Paragraph]:
    curves = [
        (panel.labels[i], points)
        for i in _shown(panel)
        if panel.labels[i] in colours
        for cell in panel.readings[i].cells
        if (points := training_losses(read_metrics(cell.folder)))
    ]
    if not curves:
        return
    most = max(len(points) for _, points in curves)
    if most < LEAST_POINTS:
        for stale in (path, path.with_suffix(".svg")):
            stale.unlink(missing_ok=True)
        yield Paragraph(
            f"No learning curves: training recorded {counted(most, 'loss', 'losses')} of a run at "
            "most; a smaller trainer.log_every records more."
        )
        return
    plot_learning(path, curves=curves, colours=colours, title=_about(panel))
    said = "Training loss, a line for each seed; a point is the mean since the point before it."
    yield Picture(path, f"{said}{_dropped(len(panel.readings))}")


def training_losses(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return the points (step, loss) of a learning curve.

    Every record is a mean over the steps since the record before it, but the record of step 1 is
    one batch: where later ones are means of many, it is noise, and left out.
    """
    points = [(m["step"], m["loss"]) for m in metrics if m.get("loss") is not None]
    return points[1:] if len(points) > 1 and points[0][0] == 1 < points[1][0] - 1 else points


def _shown(panel: Panel) -> list[int]:
    """Return the places of the reference and of the lowest losses, as many as can be told apart."""
    places = _by_loss(panel)
    first = [panel.reference] if panel.reference in places else []
    return [*first, *(i for i in places if i not in first)][:MOST]


def _by_loss(panel: Panel) -> list[int]:
    """Return the places of all settings, the lowest loss first, without those that diverged."""
    return sorted(_finite(panel), key=lambda i: panel.levels[i].mean)


def _finite(panel: Panel) -> list[int]:
    return [i for i, level in enumerate(panel.levels) if math.isfinite(level.mean)]


def _about(panel: Panel) -> str:
    """Name the corpus and the model, for a figure that is seen without its page."""
    cells = [cell for r in panel.readings for cell in r.cells if cell.result is not None]
    settings = [cell.result["config"].get("model") for cell in cells if cell.result is not None]
    names = {model_name(given) for given in settings if given}
    # Cells that start from base runs have a model of each seed.
    name = f", model {names.pop()}" if len(names) == 1 else ""
    sizes = [size for r in panel.readings if (size := r.recorded("parameters")) is not None]
    low, high = (f"{x:,.0f}" for x in (min(sizes), max(sizes))) if sizes else ("", "")
    model = f", {low if low == high else f'{low} to {high}'} parameters" if sizes else ""
    return f"{panel.name}{name}{model}"


def _dropped(count: int) -> str:
    return f" {count - MOST} of {count} settings are left out here." if count > MOST else ""


def _point(x: float, loss: Estimate) -> Point:
    return Point(x=x, mean=loss.mean, low=loss.low, high=loss.high)
