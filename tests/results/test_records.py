import json
import math
import os

import pytest

from unimem.results.records import read_result, write_bytes_atomic, write_json_atomic


def test_result_is_read_as_it_was_written(tmp_path):
    value = {"a": [1, 2.5, None], "b": {"c": True}, "text": "ä"}
    write_json_atomic(tmp_path / "result.json", value)
    assert read_result(tmp_path) == value
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_unfinished_run_has_no_result(tmp_path):
    with pytest.raises(ValueError, match="holds no result.json: .*resume=true, or name another"):
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
