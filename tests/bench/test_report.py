"""The figure is of all records, and its legend of all methods."""

import pytest

from unimem.bench import figure, report


def case(what, method, size, ratio):
    times = {"ratio": ratio, "ms": 1.0, "ratio_median": ratio, "peak_mb": None,
             "vanilla_peak_mb": None}  # fmt: skip
    found = {"what": what, "method": method, "size": size, "state_bytes": 0}
    return found | (times if what == "train_step" else {"forward": times, "both": times})


def test_legend_names_methods_that_the_first_panel_lacks(tmp_path, monkeypatch):
    named = []
    monkeypatch.setattr(
        figure, "save", lambda drawn, path, axes: named.extend(axes.get_legend_handles_labels()[1])
    )
    lines = {"one": {"a": {0: 1.0, 64: 2.0}}, "other": {"a": {64: 1.5}, "b": {64: 9.0}}}
    figure.plot_ratios(tmp_path / "x.png", lines)
    assert sorted(named) == ["a", "b"]


def test_panels_of_one_shape_stand_beside_each_other(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(report, "plot_ratios", lambda path, panels: drawn.update(panels))
    head = {"device": "cpu", "dtype": "float32", "threads": 1, "backend": "auto", "clock": "time",
            "settings": {"keys": "random", "batch_size": 1, "segment_length": 8, "repeats": 1,
                         "seed": 0},
            "machine": {"gpu": None, "platform": "here", "cpus": 1}, "versions": {"torch": "2"},
            "commit": None}  # fmt: skip
    cases = [case("step", "a", 8, 2.0), case("train_step", "a", 8, 3.0)]
    records = [head | {"shape": shape, "cases": cases} for shape in ("x", "y")]
    monkeypatch.setattr(report, "read_records", lambda folder: records)
    report.write_report(tmp_path)
    assert [title.split(",")[0] for title in drawn] == ["x", "x", "y", "y", "x", "y"]
    assert drawn["y, cpu: training step"] == {"a": {8: 3.0}}


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"settings": 1}'])
def test_what_is_no_record_is_named(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match="x.json is no record of unimem-bench"):
        report.read_records(tmp_path)
