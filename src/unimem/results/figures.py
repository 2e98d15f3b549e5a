"""Which figures a study gets, and what is drawn in them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unimem.evaluation.statistics import Estimate
from unimem.results.ages import draw_ages
from unimem.results.canvas import MOST, Colours, colours_of
from unimem.results.collect import model_name
from unimem.results.comparison import CorpusComparison, pareto_front
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


def colours_of_report(comparisons: Sequence[CorpusComparison]) -> Colours:
    """Assign colours to the settings of a report, the same in all its figures.

    Where there are more settings than colours, the reference and the lowest losses of each corpus
    have one, and all others are grey.
    """
    every = dict.fromkeys(label for comparison in comparisons for label in comparison.labels)
    shown = dict.fromkeys(
        comparison.labels[i] for comparison in comparisons for i in _shown(comparison)
    )
    return colours_of([*(every if len(every) <= MOST else shown)])


def draw_settings(
    comparison: CorpusComparison, folder: Path, prefix: str, colours: Colours
) -> Iterator[Picture]:
    """Draw the loss over what varies: over one number, over two, or a row for each setting.

    To `folder`; file names begin with `prefix`.
    """
    axes = _axes(comparison)
    if not _finite(comparison):
        return
    if len(axes) == 1:
        yield _gain_against(
            comparison, axes[0], colours, folder / f"{prefix}gain_by_{as_file_name(axes[0])}.png"
        )
    elif len(axes) == 2 and (grid := _grid(comparison, (axes[0], axes[1]))):
        yield _heat_map(comparison, (axes[0], axes[1]), grid, folder / f"{prefix}heat_map.png")
    elif len(comparison.readings) > 1:
        yield _rows(comparison, folder / f"{prefix}settings.png", colours)
    if any(r.controls and r.gap_closed() for r in comparison.readings):
        yield _shares(comparison, folder / f"{prefix}gap.png")


def draw_readings(
    comparison: CorpusComparison, folder: Path, prefix: str, colours: Colours
) -> Iterator[Picture | Paragraph]:
    """Draw losses by position, ages of memory, costs and training, in the same way."""
    if not _finite(comparison):
        return
    yield _positions(comparison, colours, folder / f"{prefix}position.png")
    shown, title = _by_loss(comparison), _about(comparison)
    yield from draw_ages(comparison, shown, colours, folder / f"{prefix}ages.png", title=title)
    for name, cost, what in (
        ("evaluation", evaluation_cost(comparison), "evaluation time (s per 1000 tokens)"),
        ("training", training_cost(comparison), "training time (s)"),
    ):
        if all(cost):
            yield _cost(comparison, cost, what, colours, folder / f"{prefix}cost_{name}.png")
    yield from _learning(comparison, colours, folder / f"{prefix}learning.png")


def evaluation_cost(comparison: CorpusComparison) -> list[float]:
    """Return the seconds to evaluate 1000 tokens, the median of the seeds, of every group."""
    speeds = [
        r.recorded("evaluation", "scores", "own", "tokens_per_second") for r in comparison.readings
    ]
    return [1000 / speed if speed else 0.0 for speed in speeds]


def training_cost(comparison: CorpusComparison) -> list[float]:
    """Return the seconds of training, the median of the seeds, of every group."""
    return [r.recorded("training_seconds") or 0.0 for r in comparison.readings]


def _grid(comparison: CorpusComparison, axes: tuple[str, str]) -> dict[tuple[float, float], int]:
    """Return the setting at every place of two numbers; nothing if a place has several."""
    grid: dict[tuple[float, float], int] = {}
    for i, (x, y) in enumerate(zip(*(_numbers(comparison, axis) for axis in axes), strict=True)):
        if x is not None and y is not None:
            if (x, y) in grid:
                return {}
            grid[x, y] = i
    return grid


def _heat_map(
    comparison: CorpusComparison,
    axes: tuple[str, str],
    grid: dict[tuple[float, float], int],
    path: Path,
) -> Picture:
    losses = {place: comparison.levels[i].mean for place, i in grid.items()}
    ties = [place for place, i in grid.items() if i in comparison.ties]
    plot_heat_map(path, labels=axes, losses=losses, bold=ties)
    beside = [
        f"{label} {comparison.levels[i].mean:.4f}"
        for i, label in enumerate(comparison.labels)
        if i not in grid.values()
    ]
    told = f" Not on the map: {', '.join(beside)}." if beside else ""
    caption = "in bold the lowest and those not significantly different from it"
    return Picture(path, f"Loss over {axes[0]} and {axes[1]}, {caption}.{told}")


def _shares(comparison: CorpusComparison, path: Path) -> Picture:
    """Draw the share of the gap that each setting closes, and that it would close without memory.

    Below -100 % the axis is logarithmic.
    """
    rows: dict[str, dict[str, Point]] = {}
    for i in _by_loss(comparison)[:ROWS]:
        marks = {"own memory": comparison.readings[i].gap_closed()}
        marks |= {words: comparison.readings[i].gap_closed(use) for use, words in CONTROLS.items()}
        rows[comparison.labels[i]] = {
            way: Point(x=0.0, mean=100 * e.mean, low=100 * e.low, high=100 * e.high)
            for way, e in marks.items()
            if e is not None and math.isfinite(e.mean)
        }
    plot_shares(path, xlabel="share of the gap closed (%)", rows=rows, title=_about(comparison))
    return Picture(
        path,
        "Share of the gap between the best losses possible without memory (0) and with all of the "
        "document in memory (100) that the same weights close with their own memory, with memory "
        "off, and with another document's memory; below 0 is worse than the bound without memory.",
    )


def _rows(comparison: CorpusComparison, path: Path, colours: Colours) -> Picture:
    shown = _by_loss(comparison)[:ROWS]
    rows = {comparison.labels[i]: _point(0.0, comparison.relative(i)) for i in shown}
    reference = comparison.labels[comparison.reference]
    plot_rows(
        path,
        xlabel=RELATIVE.format(reference),
        rows=rows,
        colours=colours,
        title=_about(comparison),
    )
    left = len(comparison.readings) - len(shown)
    dropped = f" The {left} settings with the highest loss are left out here." if left else ""
    caption = f"Paired differences from {reference}, the lowest loss first: below 0 is better."
    return Picture(path, f"{caption}{dropped}")


def _axes(comparison: CorpusComparison) -> list[str]:
    """Return the settings of which several numbers were tried."""
    keys = dict.fromkeys(key for r in comparison.readings for key in r.group.varied)
    return [key for key in keys if len(set(_numbers(comparison, key)) - {None}) > 1]


def _numbers(comparison: CorpusComparison, setting: str) -> Sequence[float | None]:
    """Return every group's value as a number, None if it has none.

    Lists that all differ in length, as those of the layers with memory may, count by it.
    """
    texts = [r.group.varied.get(setting, "") for r in comparison.readings]
    lengths = [len(text.split(",")) if text.startswith("[") else None for text in texts]
    known = [length for length in lengths if length is not None]
    return lengths if len(known) == len(set(known)) > 1 else [number(text) for text in texts]


def _title(comparison: CorpusComparison, axis: str) -> str:
    lists = any(r.group.varied.get(axis, "").startswith("[") for r in comparison.readings)
    return f"{axis} (how many)" if lists else axis


def _gain_against(comparison: CorpusComparison, axis: str, colours: Colours, path: Path) -> Picture:
    relative = [comparison.relative(i) for i in range(len(comparison.readings))]
    lines, levels = _split(comparison, axis, relative)
    label = comparison.labels[comparison.reference]
    title = _title(comparison, axis)
    plot_against(
        path,
        xlabel=title,
        ylabel=RELATIVE.format(label),
        lines=lines,
        levels=levels,
        colours=colours,
        title=_about(comparison),
    )
    dropped = _dropped(len(lines | levels))
    return Picture(path, f"Paired differences from {label} by {axis}: below 0 is better.{dropped}")


def _split(
    comparison: CorpusComparison, axis: str, losses: Sequence[Estimate]
) -> tuple[dict[str, list[Point]], dict[str, Point]]:
    """Put the groups that have a number on `axis` on lines; the others are levels."""
    lines: dict[str, list[Point]] = {}
    levels: dict[str, Point] = {}
    for r, x, level in zip(comparison.readings, _numbers(comparison, axis), losses, strict=True):
        if not math.isfinite(level.mean):
            continue
        if x is None:
            levels[r.group.label] = _point(0.0, level)
        else:
            rest = in_words({k: v for k, v in r.group.varied.items() if k != axis})
            lines.setdefault(rest or axis, []).append(_point(x, level))
    return {label: sorted(p, key=lambda p: p.x) for label, p in lines.items()}, levels


def _positions(comparison: CorpusComparison, colours: Colours, path: Path) -> Picture:
    curves = {
        comparison.labels[i]: comparison.by_position(comparison.readings[i].own.mean(0))
        for i in _shown(comparison)
        if comparison.labels[i] in colours
    }
    known = comparison.readings[0].table.columns
    bounds = {
        label: comparison.by_position(known[name])
        for name, label in BOUNDS.items()
        if name in known
    }
    plot_positions(
        path,
        edges=comparison.edges(),
        curves=curves,
        bounds=bounds,
        colours=colours,
        title=_about(comparison),
    )
    caption = (
        "Loss by position in the document: mean over seeds and all tokens of each range of the "
        "axis. No intervals: they would show how documents differ, not how settings differ."
    )
    return Picture(path, f"{caption}{_dropped(len(comparison.readings))}")


def _cost(
    comparison: CorpusComparison, cost: Sequence[float], what: str, colours: Colours, path: Path
) -> Picture:
    labels = comparison.labels
    known = _finite(comparison)
    places = [(cost[i], comparison.levels[i].mean) for i in known]
    front = [labels[known[i]] for i in pareto_front(places)]
    points = {labels[i]: _point(cost[i], comparison.relative(i)) for i in known}
    label = comparison.labels[comparison.reference]
    plot_cost(
        path,
        xlabel=what,
        ylabel=RELATIVE.format(label),
        points=points,
        front=front,
        colours=colours,
        title=_about(comparison),
    )
    caption = f"Loss difference to {label} vs. {what}. On the Pareto front: {'; '.join(front)}."
    return Picture(path, caption)


def _learning(
    comparison: CorpusComparison, colours: Colours, path: Path
) -> Iterator[Picture | Paragraph]:
    curves = [
        (comparison.labels[i], points)
        for i in _shown(comparison)
        if comparison.labels[i] in colours
        for cell in comparison.readings[i].cells
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
    plot_learning(path, curves=curves, colours=colours, title=_about(comparison))
    caption = "Training loss, a line for each seed; a point is the mean since the point before it."
    yield Picture(path, f"{caption}{_dropped(len(comparison.readings))}")


def training_losses(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return the points (step, loss) of a learning curve.

    Every record is a mean over the steps since the record before it, but the record of step 1 is
    one batch: where later ones are means of many, it is noise, and left out.
    """
    points = [(m["step"], m["loss"]) for m in metrics if m.get("loss") is not None]
    return points[1:] if len(points) > 1 and points[0][0] == 1 < points[1][0] - 1 else points


def _shown(comparison: CorpusComparison) -> list[int]:
    """Return the places of the reference and of the lowest losses, as many as can be told apart."""
    places = _by_loss(comparison)
    first = [comparison.reference] if comparison.reference in places else []
    return [*first, *(i for i in places if i not in first)][:MOST]


def _by_loss(comparison: CorpusComparison) -> list[int]:
    """Return the places of all settings, the lowest loss first, without those that diverged."""
    return sorted(_finite(comparison), key=lambda i: comparison.levels[i].mean)


def _finite(comparison: CorpusComparison) -> list[int]:
    return [i for i, level in enumerate(comparison.levels) if math.isfinite(level.mean)]


def _about(comparison: CorpusComparison) -> str:
    """Name the corpus and the model, for a figure that is seen without its page."""
    cells = [cell for r in comparison.readings for cell in r.cells if cell.result is not None]
    settings = [cell.result["config"].get("model") for cell in cells if cell.result is not None]
    names = {model_name(given) for given in settings if given}
    # Cells that start from base runs have a model of each seed.
    name = f", model {names.pop()}" if len(names) == 1 else ""
    sizes = [size for r in comparison.readings if (size := r.recorded("parameters")) is not None]
    low, high = (f"{x:,.0f}" for x in (min(sizes), max(sizes))) if sizes else ("", "")
    model = f", {low if low == high else f'{low} to {high}'} parameters" if sizes else ""
    return f"{comparison.name}{name}{model}"


def _dropped(count: int) -> str:
    return f" {count - MOST} of {count} settings are left out here." if count > MOST else ""


def _point(x: float, loss: Estimate) -> Point:
    return Point(x=x, mean=loss.mean, low=loss.low, high=loss.high)
