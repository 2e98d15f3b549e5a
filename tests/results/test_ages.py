import numpy as np
import pytest
from helpers.made_study import Made, make_comparison

from unimem.results.ages import ages_of, draw_ages
from unimem.results.canvas import colours_of


def recorded(**layers):
    """Give what evaluation records: shares of the layers, and alike slots in every bucket."""
    buckets = len(next(iter(layers.values())))
    return {
        "documents": 2,
        "edges": [1, *(8 * 2**i + 1 for i in range(buckets))],
        "share": {layer.removeprefix("l"): list(share) for layer, share in layers.items()},
        "slots": {layer.removeprefix("l"): [10.0] * buckets for layer in layers},
    }


def setting(overrides, ages, nll=2.0):
    """Give a setting whose seeds all have these ages."""
    evaluation = {
        "protocol": "segments",
        "segment_length": 8,
        "scores": {"own": {"nll": nll, "bits_per_byte": None, "tokens_per_second": 1.0}},
        "ages": ages,
    }
    return Made(overrides=overrides, nll=nll, more={"evaluation": evaluation})


def test_what_each_slot_gets_is_one_where_all_are_read_alike(tmp_path):
    comparison = make_comparison(
        tmp_path, setting("method=a", recorded(l0=[0.3, 0.1], l4=[0.1, 0.3]))
    )
    ages = ages_of(comparison.readings[0])
    assert ages is not None and ages.edges == [1, 9, 17]
    np.testing.assert_allclose(ages.share, [[0.3, 0.1], [0.1, 0.3]])
    np.testing.assert_allclose(ages.relative(), [1.0, 1.0])


def test_what_each_slot_gets_is_a_multiple_of_the_mean(tmp_path):
    ages = recorded(l0=[0.3, 0.1, 0.0])
    ages["slots"]["0"] = [10.0, 30.0, 0.0]
    found = ages_of(make_comparison(tmp_path, setting("method=a", ages)).readings[0])
    assert found is not None
    np.testing.assert_allclose(found.relative(), [3.0, 1 / 3, np.nan])


def test_runs_without_ages_have_no_figure(tmp_path):
    comparison = make_comparison(tmp_path, Made(overrides="method=a"))
    assert ages_of(comparison.readings[0]) is None
    assert (
        list(draw_ages(comparison, [0], colours_of(comparison.labels), tmp_path / "ages.png")) == []
    )


def test_ages_of_other_segments_and_of_too_many_settings_are_named(tmp_path):
    many = [setting(f"injection_layer={i}", recorded(l0=[0.1, 0.2]), nll=i) for i in range(9)]
    other = setting("injection_layer=9", recorded(l0=[0.1]) | {"edges": [1, 5]}, nll=9)
    comparison = make_comparison(tmp_path, *many, other)
    colours = colours_of(comparison.labels)
    (picture,) = draw_ages(comparison, range(10), colours, tmp_path / "ages.png")
    assert picture.path.read_bytes()[:4] == b"\x89PNG"
    assert "2 of 10 settings are left out here" in picture.caption
    assert "range" not in picture.caption


@pytest.mark.parametrize("layers", [["l0"], ["l0", "l1"]])
def test_the_band_is_named_where_there_are_several_layers(tmp_path, layers):
    comparison = make_comparison(
        tmp_path, setting("method=a", recorded(**dict.fromkeys(layers, [0.1, 0.2])))
    )
    (picture,) = draw_ages(comparison, [0], colours_of(comparison.labels), tmp_path / "ages.png")
    assert ("mean of the layers and their range" in picture.caption) == (len(layers) > 1)


def test_bands_of_many_settings_are_not_drawn(tmp_path):
    ages = recorded(l0=[0.1, 0.2], l1=[0.2, 0.1])
    comparison = make_comparison(tmp_path, *(setting(f"method=m{i}", ages) for i in range(4)))
    (picture,) = draw_ages(
        comparison, range(4), colours_of(comparison.labels), tmp_path / "ages.png"
    )
    assert "mean of the layers;" in picture.caption and "range" not in picture.caption


def test_an_age_that_is_not_read_has_a_triangle_and_no_line_through_the_floor(tmp_path):
    """Other values below the floor of the logarithmic axis are the same figure."""

    def draw(name, least):
        comparison = make_comparison(
            tmp_path / name, setting("method=a", recorded(l0=[0.3, 0.1, least]))
        )
        path = tmp_path / f"{name}.png"
        (picture,) = draw_ages(comparison, [0], colours_of(comparison.labels), path)
        return picture.caption, path.read_bytes()

    caption, image = draw("zero", 0.0)
    assert "a triangle at the bottom edge stands for less than 0.001" in caption
    assert draw("tiny", 1e-12)[1] == image
    assert "triangle" not in draw("some", 0.05)[0]
