"""Figures of results."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimem.results.canvas import COLOURS, LOSS, bucket_ticks, new_figure, position_label, save

Curve = Mapping[str, Sequence[float]]
"""`mean`, `low` and `high` of every bucket, as in `by_position` of a result."""


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
    figure, (top, bottom) = new_figure((7, 6), nrows=2, sharex=True, height_ratios=(2, 1))
    for (label, curve), colour in zip(curves.items(), COLOURS, strict=False):
        _draw(top, curve, colour, label)
    for (label, curve), style in zip(bounds.items(), ("--", ":"), strict=False):
        top.plot(curve["mean"], style, color="black", linewidth=1.2, label=label)
    top.set_title(title)
    top.set_ylabel(LOSS)
    top.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.02))

    label, curve = difference
    bottom.axhline(0, color="black", linewidth=0.8)
    _draw(bottom, curve, "black", None)
    bottom.set_ylabel("difference (nats)")
    bottom.set_title(label, fontsize=10)
    bottom.set_xlabel(position_label(edges))
    bucket_ticks(bottom, edges)
    for axis in (top, bottom):
        axis.grid(visible=False, axis="x")
    save(figure, path)


def _draw(axis: Any, curve: Curve, colour: str, label: str | None) -> None:
    """Draw one curve, with its interval if there is one; all buckets have the same width."""
    places = range(len(curve["mean"]))
    axis.plot(places, curve["mean"], "o-", color=colour, markersize=3.5, label=label)
    if None not in curve["low"]:
        axis.fill_between(
            places, curve["low"], curve["high"], color=colour, alpha=0.15, linewidth=0
        )
