"""Figures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Curve = Mapping[str, Sequence[float]]
"""`mean`, `low` and `high` of every bucket, as in `by_position` of a result."""

# Okabe and Ito's colours, told apart by colour-blind eyes too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def plot_by_position(
    path: Path,
    *,
    title: str,
    edges: Sequence[int],
    curves: Mapping[str, Curve],
    bounds: Mapping[str, Curve],
    difference: tuple[str, Curve],
) -> None:
    """Draw the loss by position in the document to `path`, and a paired difference below.

    `edges` of the buckets in tokens; curves and bounds by label. Bands are 95 % intervals over
    documents: wide for a loss, because documents differ, narrow for a difference on the same
    tokens.
    """
    # Importing pyplot takes a second and picks a display; figures are drawn without one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for (label, curve), colour in zip(curves.items(), COLOURS, strict=False):
        _draw(top, curve, colour, label)
    for (label, curve), style in zip(bounds.items(), ("--", ":"), strict=False):
        top.plot(_places(curve), curve["mean"], style, color="black", linewidth=1.2, label=label)
    top.set_title(title)
    top.set_ylabel("loss (nats per token)")
    top.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.02))

    label, curve = difference
    bottom.axhline(0, color="black", linewidth=0.8)
    _draw(bottom, curve, "black", None)
    bottom.set_ylabel("difference (nats)")
    bottom.set_title(label, fontsize=10)
    bottom.set_xlabel("position in the document (tokens)")
    shown = range(0, len(edges), -(-(len(edges) - 1) // 8))
    bottom.set_xticks(shown, [str(edges[i]) for i in shown])
    for axis in (top, bottom):
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _places(curve: Curve) -> list[float]:
    """Give every bucket the same width, be it segments or doublings of them."""
    return [i + 0.5 for i in range(len(curve["mean"]))]


def _draw(axis: Any, curve: Curve, colour: str, label: str | None) -> None:
    """Draw one curve at the middle of its buckets, with its interval if there is one."""
    places = _places(curve)
    axis.plot(places, curve["mean"], "o-", color=colour, markersize=3.5, label=label)
    if None not in curve["low"]:
        axis.fill_between(
            places, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0
        )
