import pytest
from small_study import copy_of, small_study

from unimem.results.collect import collect, read_metrics, sort, where


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def test_what_lies_in_a_run_is_no_run(output, tmp_path):
    inner = output / "runs" / "alone" / "eval-1"
    inner.mkdir(exist_ok=True)
    (inner / "result.json").write_text("{}")
    folders = [row["folder"] for row in collect(output)]
    assert len(folders) == 6 and "runs/alone" in folders


def test_dimensions_are_words_and_settings_are_values(output):
    (row,) = where(collect(output), ["injection_layer=1"])
    assert row["memory.injection"] == "single"
    assert row["memory.size"] == 16 and row["data.length"] == 40 and row["method"] == "custom"


def test_conditions_read_numbers_as_numbers():
    rows = [{"lr": 0.001, "x": None}, {"lr": 0.002, "x": True}]
    assert where(rows, ["lr=1e-3"]) == rows[:1]
    assert where(rows, ["x=null"]) == rows[:1] and where(rows, ["x=true"]) == rows[1:]
    assert where(rows, ["lr=small"]) == []


def test_sorting_puts_the_unknown_last():
    rows = [{"x": None}, {"x": "word"}, {"x": 2}, {"x": 1.5}]
    assert [row["x"] for row in sort(rows, "x")] == [1.5, 2, "word", None]


def test_a_line_being_written_is_no_metric(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_what_wandb_writes_is_no_run(output, tmp_path):
    copied = copy_of(output, tmp_path)
    other = copied / "small" / "wandb" / "run-1" / "files"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("wandb_version: 1")
    assert len(collect(copied)) == len(collect(output))
