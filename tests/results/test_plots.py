import math
import re
import struct

import pytest

from unimem.results.canvas import COLOURS, by_right_end, colours_of, position_label
from unimem.results.plots import (
    Point,
    grow_by_factors,
    plot_against,
    plot_cost,
    plot_heat_map,
    plot_rows,
    plot_shares,
)


def point(x, mean, low=None, high=None):
    return Point(
        x=x, mean=mean, low=mean if low is None else low, high=mean if high is None else high
    )


def test_an_interval_need_not_hold_its_mean(tmp_path):
    """A difference that is the same in all documents differs from its bounds by rounding."""
    lines = {"a": [point(0, 1.0, low=1.0 + 1e-12, high=1.0 + 1e-12), point(1, 2.0)]}
    unknown = {"b": point(0, 1.5, low=math.nan, high=math.nan)}
    plot_against(
        tmp_path / "a.png", xlabel="x", ylabel="y", lines=lines, levels=unknown, colours={}
    )
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_of_many_points_the_front_alone_is_named(tmp_path):
    points = {f"p{i}": point(i, -i if i < 3 else 1.0) for i in range(12)}

    def draw(name, **renamed):
        named = {renamed.get(label, label): value for label, value in points.items()}
        front = [renamed.get(label, label) for label in ("p0", "p1", "p2")]
        path = tmp_path / name
        plot_cost(path, xlabel="x", ylabel="y", points=named, front=front, colours={})
        return path.read_bytes()

    image = draw("a.png")
    assert draw("b.png", p7="other") == image
    assert draw("c.png", p1="other") != image


def test_a_heat_map_may_have_holes(tmp_path):
    losses = {(1.0, 1.0): 1.0, (2.0, 1.0): 2.0, (1.0, 4.0): 3.0}
    plot_heat_map(tmp_path / "a.png", labels=("x", "y"), losses=losses, bold=[])
    plot_heat_map(tmp_path / "b.png", labels=("x", "y"), losses=losses | {(2.0, 4.0): 2.5}, bold=[])
    holed, whole = ((tmp_path / name).read_text() for name in ("a.svg", "b.svg"))
    assert "2.5000" in whole and "2.5000" not in holed
    assert all(f"{loss:.4f}" in holed for loss in losses.values())


def test_a_row_for_each_setting_takes_its_room(tmp_path):
    rows = {f"setting {i}": point(0, i / 10) for i in range(10)}
    for name, count in (("a.png", 5), ("b.png", 10)):
        shown = dict(list(rows.items())[:count])
        plot_rows(tmp_path / name, xlabel="x", rows=shown, colours={"setting 0": "red"})
    heights = [
        struct.unpack(">II", (tmp_path / name).read_bytes()[16:24])[1]
        for name in ("a.png", "b.png")
    ]
    assert heights[1] - heights[0] == 5 * 90


@pytest.mark.parametrize(
    ("xs", "found"),
    [
        ([0, 1, 4, 16, 64], True),
        ([16, 64, 256, 1024], True),
        ([0, 1, 3, 7], False),
        ([*range(22)], False),
        ([*range(1, 22)], False),
        ([64, 128, 256], False),
        ([0, 0.5], False),
    ],
)
def test_powers_stand_one_step_apart(xs, found):
    assert grow_by_factors(xs) is found


def test_as_many_labels_have_colours_as_there_are():
    colours = colours_of([f"{i}" for i in range(20)])
    assert len(colours) == 8 == len(set(colours.values()))


def test_shares_far_below_the_bound_stay_apart(tmp_path):
    """Marks that were moved to an edge would look like a tie."""

    def draw(name, *shares):
        rows = {f"m{i}": {"other": point(0, share)} for i, share in enumerate(shares)}
        path = tmp_path / name
        plot_shares(path, xlabel="share (%)", rows=rows)
        return path.read_bytes(), path.with_suffix(".svg").read_text()

    near, svg = draw("a.png", 50, -90)
    assert "logarithmic" not in svg
    far, svg = draw("b.png", 50, -150, -30000)
    assert "<!-- share (%), logarithmic below -100 -->" in svg and "<!-- -10,000 -->" in svg
    assert draw("c.png", 50, -150, -20000)[0] != far != near


def test_the_legend_follows_the_lines_at_their_right_end():
    curves = {"a": [3.0, 1.0], "b": [0.0, 2.0, math.nan], "c": [math.nan], "d": [9.0]}
    assert by_right_end(curves) == ["d", "b", "a", "c"]


def test_the_axis_of_positions_says_how_wide_its_ranges_are():
    assert position_label([0, 64, 128]).endswith("(tokens; ranges of 64)")
    assert position_label([0, 64, 128, 256]).endswith("(tokens; ranges double in width, from 64)")


def test_a_level_has_the_colour_of_its_setting_and_a_line_another(tmp_path):
    path = tmp_path / "a.png"
    colours = colours_of(["other", "vanilla"])
    plot_against(
        path,
        xlabel="x",
        ylabel="y",
        lines={"layers": [point(0, 1.0), point(1, 2.0)], "more": [point(0, 3.0), point(1, 2.0)]},
        levels={"vanilla": point(0, 1.5)},
        colours=colours,
    )
    svg = path.with_suffix(".svg").read_text().lower()
    drawn = set(re.findall(r"stroke: (#[0-9a-f]{6})", svg))
    wanted = {colour.lower() for colour in COLOURS[:3]}
    assert wanted <= drawn
    dashed = {line for line in svg.splitlines() if "dasharray" in line}
    assert any(colours["vanilla"].lower() in line for line in dashed)
