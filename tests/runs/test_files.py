import json
import math
import os
from pathlib import Path

import pytest

from unimem.runs.files import open_to_readers, write_bytes_atomic, write_json_atomic
from unimem.runs.records import read_result


def test_result_is_read_as_it_was_written(tmp_path):
    value = {"config": {"a": [1, 2.5, None]}, "b": {"c": True}, "text": "ä"}
    write_json_atomic(tmp_path / "result.json", value)
    assert read_result(tmp_path) == value
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_of_libraries_get_the_mode_of_the_umask(tmp_path, umask, mode):
    (tmp_path / "model.safetensors").touch(mode=0o600)
    before = os.umask(umask)
    try:
        open_to_readers(tmp_path)
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == mode


def make_tree(root):
    """A finished run, a begun one, a model folder of neither, and a folder of runs."""
    for name in ("runs/done/model", "runs/done/checkpoints", "runs/begun", "llama", "empty"):
        (root / name).mkdir(parents=True)
    for name in ("done", "begun"):
        (root / "runs" / name / "config.yaml").write_text("seed: 0\n")
    write_json_atomic(root / "runs" / "done" / "result.json", {"config": {}})
    (root / "runs/done/checkpoints/step-00000003.ckpt").write_bytes(b"")
    for name in ("runs/done/model", "llama"):
        (root / name / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/begun", "begun holds no result.json: the run has not .*name=begun resume=true"),
        ("runs/done/model", "model is a part of a run; name the run's folder, .*runs/done$"),
        (
            "runs/done/checkpoints/step-00000003.ckpt",
            "is a file, not the folder of a run; name the run's folder, .*runs/done$",
        ),
        ("runs/done/result.json", "is a file.*; name the run's folder, .*runs/done$"),
        ("runs/dome", "runs/dome does not exist; did you mean done?"),
        ("nowhere/at/all", "all does not exist; name the folder of a finished run"),
        ("llama", "Hugging Face format.*: unimem-train trainer.max_steps=0 model=hf model.name="),
        ("runs", "runs is not a run, but holds runs: name one of begun, done$"),
        ("empty", "empty is not the folder of a run: it holds neither result.json nor config.yaml"),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_what_is_no_finished_run_is_said_as_what_it_is(
    tmp_path, monkeypatch, path, message, relative
):
    make_tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        read_result(Path(path) if relative else tmp_path / path)


def test_a_hub_id_is_told_how_to_evaluate_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="model=hf model.name=org/model-7b"):
        read_result(Path("org/model-7b"))


@pytest.mark.parametrize(
    "text", ["", '{"config": {', "[]", "1", "{}", '{"config": 1}', "[" * 10**5]
)
def test_a_damaged_result_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match="result.json is (damaged|not the record of a run): .*"):
        read_result(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}])
def test_what_is_no_json_leaves_the_old_file(tmp_path, value):
    path = tmp_path / "result.json"
    write_json_atomic(path, {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        write_json_atomic(path, {"new": value})
    assert json.loads(path.read_text()) == {"old": 1}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
