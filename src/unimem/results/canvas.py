"""What all figures have in common."""

import logging
import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimem.words import printable, writing

logger = logging.getLogger(__name__)

# Okabe and Ito's colours that are seen on white, a wine red and a grey: told apart by
# colour-blind eyes too.
GREY = "#999999"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", GREY)

MOST = len(COLOURS)
"""Curves that can still be told apart in one figure."""

LOSS = "loss (nats per token)"

Colours = Mapping[str, str]
"""The colour of each curve by its label, so that a setting has one colour in all figures."""


def colours_of(labels: Sequence[str]) -> Colours:
    """Return colours to as many labels as there are colours."""
    return dict(zip(labels, COLOURS, strict=False))


def new_figure(size: tuple[float, float] = (7, 4.3), **grid: Any) -> tuple[Any, Any]:
    """Make a figure of some inches, and its axes as `subplots(**grid)` gives them."""
    # Importing pyplot takes a second and picks a display; figures are drawn without one.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(**grid)
    for one in figure.axes:
        one.grid(alpha=0.3)
        one.set_axisbelow(True)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Any, path: Path, legend_of: Any = None, *, beside: bool = False) -> None:
    """Write the figure, with the legend of some axes below it, or `beside` it if labels are short.

    Beside it, a legend in the order of the lines at their right end is read with the lines.
    """
    handles, labels = legend_of.get_legend_handles_labels() if legend_of else ([], [])
    if labels:
        wrapped = [textwrap.fill(label, 24, break_long_words=False) for label in labels]
        right = beside and max(len(line) for label in wrapped for line in label.split("\n")) < 30
        longest = max(map(len, labels))
        figure.legend(
            handles,
            wrapped if right else labels,
            loc="outside right upper" if right else "outside lower center",
            ncols=1 if right or longest >= 45 else 3 if longest < 25 else 2,
            frameon=False,
            fontsize=9,
        )
    _take_as_written(figure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with writing(path):
            figure.savefig(path, dpi=300)
        figure.set_layout_engine("none")  # laid out once, for both files
        # Without a date, so that the same figure is the same file.
        with writing(vector := path.with_suffix(".svg")):
            figure.savefig(vector, metadata={"Date": None})
    lacking = [w for w in caught if "missing from font" in str(w.message)]
    if lacking:
        logger.warning("%s: the font has no sign for some characters, which are boxes", path)
    for other in caught:
        if other not in lacking:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)


def _take_as_written(figure: Any) -> None:
    """Let no text be a formula, but for the labels that matplotlib itself makes."""
    from matplotlib.text import Text
    from matplotlib.ticker import FixedFormatter, FuncFormatter

    own: set[Any] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            for minor in (False, True):
                labels = axis.get_ticklabels(minor=minor)
                made = axis.get_minor_formatter() if minor else axis.get_major_formatter()
                if not isinstance(made, FixedFormatter | FuncFormatter):
                    own.update(labels)
                elif labels:
                    texts = [printable(label.get_text()) for label in labels]
                    axis.set_ticklabels(texts, minor=minor)
    for text in figure.findobj(Text):
        if text not in own:
            text.set_parse_math(False)
            text.set_text(printable(text.get_text()))


def by_right_end(curves: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the labels of curves in the order of their last known values, the highest first.

    Curves without a known value come last.
    """
    known = {label: [y for y in ys if math.isfinite(y)] for label, ys in curves.items()}
    return sorted(curves, key=lambda label: -known[label][-1] if known[label] else math.inf)


def position_label(edges: Sequence[int]) -> str:
    """Name the axis of positions [edges[i], edges[i + 1]), and say how wide its ranges are."""
    widths = [b - a for a, b in zip(edges, edges[1:], strict=False)]
    alike = len(set(widths)) == 1
    said = f"ranges of {widths[0]}" if alike else f"ranges double in width, from {widths[0]}"
    return f"position in the document (tokens; {said})"


def bucket_ticks(axes: Any, edges: Sequence[int]) -> None:
    """Label buckets of one width by about eight of their edges."""
    shown = range(0, len(edges), -(-(len(edges) - 1) // 8))
    axes.set_xticks([i - 0.5 for i in shown], [str(edges[i]) for i in shown])
