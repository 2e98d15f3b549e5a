import json

import pytest
from helpers.small_study import copy_of, small_study

from unimem.results.collect import collect, sort, where
from unimem.runs.records import read_metrics


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def test_what_lies_in_a_run_is_no_run(output, tmp_path):
    copied = copy_of(output, tmp_path)
    inner = copied / "runs" / "alone" / "checkpoints" / "deep"
    inner.mkdir(parents=True)
    (inner / "result.json").write_text("{}")
    found = collect(copied)
    folders = [row["folder"] for row in found.rows]
    assert len(folders) == 6 and "runs/alone" in folders and not found.damaged


def test_dimensions_are_words_and_settings_are_values(output):
    (row,) = where(collect(output).rows, ["injection_layer=1"])
    assert row["memory.injection"] == "layers"
    assert row["memory.size"] == 16 and row["data.length"] == 40 and row["method"] == "custom"


def test_conditions_read_numbers_as_numbers():
    rows = [{"lr": 0.001, "x": None}, {"lr": 0.002, "x": True}]
    assert where(rows, ["lr=1e-3"]) == rows[:1]
    assert where(rows, ["x=null"]) == rows[:1] and where(rows, ["x=true"]) == rows[1:]
    assert where(rows, ["lr=small"]) == []
    assert where(rows, ["lr<0.0015"]) == rows[:1] and where(rows, ["lr>=0.002"]) == rows[1:]
    assert where(rows, ["lr=0.001,0.002"]) == rows and where(rows, ["lr!=0.001"]) == rows[1:]
    assert where(rows, ["x>0"]) == []  # neither an absent value nor yes and no are numbers


def test_lists_are_values_and_may_be_several():
    rows = [{"layers": [1, 2]}, {"layers": [3]}, {"layers": "a,b"}]
    assert where(rows, ["layers=[1, 2]"]) == rows[:1]
    assert where(rows, ["layers=[1,2],[3]"]) == rows[:2] and where(rows, ["layers=a,b"]) == rows[2:]


@pytest.mark.parametrize(
    ("condition", "message"),
    [("lr", "where lr: write column=value"), ("lr<much", "where lr<much: 'much' is not a number")],
)
def test_what_is_no_condition_is_told(condition, message):
    with pytest.raises(ValueError, match=message):
        where([{"lr": 1}], [condition])


def test_sorting_puts_the_unknown_last():
    rows = [{"x": None}, {"x": "word"}, {"x": 2}, {"x": 1.5}]
    assert [row["x"] for row in sort(rows, "x")] == [1.5, 2, "word", None]
    assert [row["x"] for row in sort(rows, "-x")] == ["word", 2, 1.5, None]
    assert sort(rows, "x", descending=True) == sort(rows, "-x")


def test_a_line_being_written_is_no_metric(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_what_wandb_writes_is_no_run(output, tmp_path):
    copied = copy_of(output, tmp_path)
    other = copied / "small" / "wandb" / "run-1" / "files"
    other.mkdir(parents=True)
    (other / "config.yaml").write_text("wandb_version: 1")
    assert len(collect(copied).rows) == len(collect(output).rows)


def test_rows_tell_corpus_model_controls_and_differences(output, tmp_path):
    copied = copy_of(output, tmp_path)
    path = copied / "runs" / "alone" / "result.json"
    result = json.loads(path.read_text())
    own = result["evaluation"]["scores"]["own"]
    result["evaluation"]["scores"]["off"] = own | {"nll": 3.0}
    result["evaluation"]["comparisons"]["own-off"] = {"difference": -0.5, "interval": [-0.6, -0.4]}
    path.write_text(json.dumps(result))
    (row,) = where(collect(copied).rows, ["name=alone", "data=markov", "model=2x16"])
    assert row["nll_off"] == 3.0 == row["evaluation.scores.off.nll"]
    assert (row["own-off"], row["own-off_low"], row["own-off_high"]) == (-0.5, -0.6, -0.4)


def test_evaluations_have_rows_of_their_own(output, tmp_path):
    copied = copy_of(output, tmp_path)
    result = json.loads((copied / "runs" / "alone" / "result.json").read_text())
    evaluation = {k: result[k] for k in ("config", "evaluation", "seed")} | {"run": "runs/alone"}
    for folder in (copied / "runs" / "alone" / "eval-1", copied / "elsewhere"):
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps(evaluation))
    found = where(collect(copied).rows, ["kind=evaluation"])
    assert {row["folder"] for row in found} == {"runs/alone/eval-1", "elsewhere"}
    assert "alone/eval-1" in {row["name"] for row in found}
    assert {row["nll"] for row in found} == {result["evaluation"]["scores"]["own"]["nll"]}


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"config": {}}', '{"config": {}, "evaluation": [1]}', "[" * 9999]
)
def test_a_record_that_cannot_be_read_costs_its_row_alone(output, tmp_path, text):
    copied = copy_of(output, tmp_path)
    (copied / "runs" / "alone" / "result.json").write_text(text)
    (copied / "small" / "study.json").write_text(text)
    found = collect(copied)
    assert len(found.rows) == 5
    assert any("alone/result.json" in line for line in found.damaged)
    assert any("study.json is damaged" in line for line in found.damaged)


@pytest.mark.parametrize("text", ["", "a: [", "- 1", "seed: 0"])
def test_damaged_settings_of_an_unfinished_run_are_named(output, tmp_path, text):
    copied = copy_of(output, tmp_path)
    (copied / "runs" / "alone" / "result.json").unlink()
    (copied / "runs" / "alone" / "config.yaml").write_text(text)
    found = collect(copied, unfinished=True)
    assert len(found.rows) == 5 and len(found.damaged) == 1 and "alone" in found.damaged[0]
