"""What all figures have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    """Give colours to as many labels as there are colours."""
    return dict(zip(labels, COLOURS, strict=False))


def new_figure(size: tuple[float, float] = (6, 4), **grid: Any) -> tuple[Any, Any]:
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


def save(figure: Any, path: Path, legend_of: Any = None) -> None:
    """Write the figure, with the legend of some axes below it."""
    handles, labels = legend_of.get_legend_handles_labels() if legend_of else ([], [])
    if labels:
        longest = max(map(len, labels))
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=3 if longest < 25 else 2 if longest < 45 else 1,
            frameon=False,
            fontsize=9,
        )
    figure.savefig(path, dpi=300)
    # Without a date, so that the same figure is the same file.
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def bucket_ticks(axes: Any, edges: Sequence[int]) -> None:
    """Label buckets of one width by about eight of their edges."""
    shown = range(0, len(edges), -(-(len(edges) - 1) // 8))
    axes.set_xticks([i - 0.5 for i in shown], [str(edges[i]) for i in shown])
