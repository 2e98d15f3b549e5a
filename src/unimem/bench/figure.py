"""The figure of a benchmark: what memory costs by its size."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path

from unimem.results.canvas import COLOURS, new_figure, save

COLUMNS = 2
STYLES = ("o-", "s--", "^:", "v-.")


def plot_ratios(path: Path, panels: Mapping[str, Mapping[str, Mapping[int, float]]]) -> None:
    """Draw for each panel, by its title, each method's ratio to vanilla by memory size.

    Both axes are logarithmic; memory of no slots stands at the left end.
    """
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (5.0 * columns, 3.2 * rows + 1)
    figure, grid = new_figure(size, nrows=rows, ncols=columns, squeeze=False)
    methods = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = dict(zip(methods, product(STYLES, COLOURS), strict=False))
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        sizes = sorted({size for line in lines.values() for size in line})
        for method, line in lines.items():
            style, colour = looks[method]
            xs = sorted(line)
            axes.plot(xs, [line[x] for x in xs], style, color=colour, markersize=4, label=method)
        axes.axhline(1, color="black", linewidth=0.8)
        least = min((size for size in sizes if size), default=1)
        axes.set_xscale("symlog", linthresh=least, linscale=0.5)
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axes.set_yscale("log")
        axes.minorticks_off()
        ticks = _ticks([ratio for line in lines.values() for ratio in line.values()])
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("slots in memory")
        axes.set_ylabel("time / vanilla")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for method in methods:  # the legend is of one panel, which may lack some
        if method not in next(iter(panels.values())):
            style, colour = looks[method]
            grid.flat[0].plot([], [], style, color=colour, markersize=4, label=method)
    save(figure, path, grid.flat[0])


def _ticks(ratios: list[float]) -> list[float]:
    """Return round numbers around some ratios and 1, more of them the closer these are."""
    low, high = min(1.0, *ratios), max(1.0, *ratios)
    digits = (1, 2, 5) if high / low > 5 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    ticks = [digit * 10.0**power for power in range(-2, 4) for digit in digits]
    return [tick for tick in ticks if low / 1.1 <= tick <= high * 1.1]
