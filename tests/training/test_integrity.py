"""Files of a finished run that are not as they were written are found by whoever reads them."""

import json
import logging
import shutil

import pytest
from training.conftest import Runs, metrics

from unimem.evaluation.tokens import TokenTable
from unimem.integrity import digests, is_changed, require_whole, sealed
from unimem.model.attach import read_memory
from unimem.model.load import load_pretrained
from unimem.runs.records import read_result

READERS = {
    "model/config.json": lambda run: load_pretrained(run / "model", "the model"),
    "model/model.safetensors": lambda run: load_pretrained(run / "model", "the model"),
    "model/memory.safetensors": lambda run: read_memory(run / "model"),
    "documents.npz": TokenTable.load,
    "metrics.jsonl": lambda run: require_whole(run / "metrics.jsonl"),
}
"""By file of a run, how it is read."""

GATED = ("memory.fusion=gated", "name=a")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("finished")).start(*GATED)


@pytest.fixture
def run(finished, runs):
    copy = runs.output / "runs" / "a"
    shutil.copytree(finished, copy)
    return copy


def flip(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def test_the_record_names_all_files_of_the_run_that_are_read_later(finished):
    others = {"model/generation_config.json"}
    assert read_result(finished)["files"].keys() - others == READERS.keys()
    assert (
        digests(finished, ["model", "documents.npz", "metrics.jsonl"])
        == (read_result(finished)["files"])
    )


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("damage", ["flipped", "cut", "zeros", "missing"])
def test_damage_is_found_and_named_by_the_reader(run, name, damage):
    READERS[name](run)
    path = run / name
    content = path.read_bytes()
    if damage == "flipped":
        flip(path, 0.9)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "zeros":
        path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    else:
        path.unlink()
    words = "cannot be read" if damage == "missing" else "is damaged: its sha256 is"
    with pytest.raises(ValueError, match=f"{name} {words}.*bring that file back"):
        READERS[name](run)


def test_weights_of_another_run_are_not_taken_for_its_own(run, tmp_path):
    other = Runs(tmp_path / "other").start(*GATED, "seed=1")
    shutil.copy(other / "model" / "model.safetensors", run / "model" / "model.safetensors")
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        load_pretrained(run / "model", "the model")


def test_a_number_of_the_result_that_changed_is_found(run):
    path = run / "result.json"
    result = json.loads(path.read_text())
    assert list(result)[-1] == "check" and not is_changed(result)
    result["evaluation"]["scores"]["own"]["nll"] += 1e-6
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match=r"result\.json is damaged: its content is not as it was"):
        read_result(run)


def test_seals_survive_writing_and_reading_and_need_not_be_there():
    record = sealed({"b": [1.5e-17, 2**60, "ä"], "a": {"x": None}})
    assert not is_changed(json.loads(json.dumps(record, indent=2)))
    assert is_changed(record | {"b": [1.5e-17, 2**60, "a"]})
    assert not is_changed({"a": 1})


def test_runs_of_earlier_versions_and_other_folders_are_not_compared(run):
    result = read_result(run)
    (run / "result.json").write_text(
        json.dumps({k: v for k, v in result.items() if k not in ("files", "check")})
    )
    flip(run / "model" / "config.json", 0)
    require_whole(run / "model")
    require_whole(run.parent)


def test_a_run_with_damaged_files_is_finished_again_from_its_last_checkpoint(run, runs, caplog):
    weights = run / "model" / "model.safetensors"
    before, content = read_result(run), weights.read_bytes()
    flip(weights)
    with caplog.at_level(logging.WARNING):
        runs.start(*GATED, "resume=true")
    assert "model.safetensors is damaged" in caplog.text
    assert "kept as result.json.damaged, and the run is not finished" in caplog.text
    assert weights.read_bytes() == content
    after = read_result(run)
    assert after["files"]["documents.npz"] == before["files"]["documents.npz"]


def test_records_of_metrics_that_are_gone_are_counted_when_the_run_goes_on(finished, runs, caplog):
    runs.copy_at(finished, 5)
    path = runs.output / "runs" / "a" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:20] + "\n", *lines[3:5]]))  # 2 torn, 3 missing
    with caplog.at_level(logging.WARNING):
        run = runs.start(*GATED, "resume=true")
    assert "holds 3 of the 5 records that the checkpoint of step 5 knows (steps 1 to 5)" in (
        caplog.text
    )
    assert [line["step"] for line in metrics(run)] == [1, 4, 5, 6, 7, 8]
    assert read_result(run)["metrics_lost"] == 2


def test_records_of_metrics_that_changed_are_noticed(finished, runs, caplog):
    runs.copy_at(finished, 5)
    path = runs.output / "runs" / "a" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"step": 3, "loss": ', '"step": 3, "loss": 1'))
    with caplog.at_level(logging.WARNING):
        run = runs.start(*GATED, "resume=true")
    assert "holds 5 of the 5 records" in caplog.text and "lost or changed" in caplog.text
    assert read_result(run)["metrics_lost"] == 1
    assert read_result(finished)["metrics_lost"] == 0
