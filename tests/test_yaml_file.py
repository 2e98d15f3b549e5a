"""YAML of others: read as plain values within bounds, or refused by name at once."""

import os
import time
from pathlib import Path

import pytest

from unimem.config import ConfigError, compose
from unimem.paths import CONFIG_DIR
from unimem.runs.folder import recorded_config
from unimem.runs.records import read_run
from unimem.studies.study_file import read_study_file
from unimem.yaml_file import MOST_NESTED, MOST_NODES, YamlFileError, load_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = [
    (BOMB, f"more than {MOST_NODES:,} values"),
    ("\n".join(f"k{i}: 1" for i in range(MOST_NODES)), "more than"),
    ("a: " + "x" * 2_000_000, "larger than"),
    ("a: &a [*a]", r"\*a stands within what it names"),
    ("a: &a\n  <<: *a", r"\*a stands within what it names"),
    ("a: " + "[" * 5000 + "]" * 5000, f"nested deeper than {MOST_NESTED}"),
    ("a: !!python/object/apply:os.system ['touch canary']", "could not determine a constructor"),
    ("a: !mine 3", "could not determine a constructor"),
    ("a: 1\na: 2", "duplicate key"),
    ("null: 1", "key"),
    ("[1, 2]: 1", "unhashable key"),
    ("b:\n  <<: 3", "mapping"),
    ("a: \0", "special characters"),
    ("a: *x", "undefined alias"),
    ("a:\n\tb: 1", "cannot start any token"),
    ("a: 1\n---\nb: 2", "single document"),
    ("a: " + "9" * 5000, "digits"),
    ("a: 1".encode("utf-16"), "not UTF-8"),
    (b"a: \xe9", "not UTF-8"),
    ("3", "not YAML"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_is_refused_is_named_at_once(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.monotonic()
    for read in (load_yaml, lambda p: read_study_file(str(p)), lambda p: read_run(p.parent),
                 lambda p: recorded_config(p.parent)):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
    assert time.monotonic() - start < 30
    assert not Path("canary").exists()


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_a_folder_of_options_is_read_within_the_same_bounds(text, message, tmp_path, monkeypatch):
    path = tmp_path / "data" / "four.yaml"
    path.parent.mkdir()
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path))
    with pytest.raises(ConfigError, match=message) as error:
        compose("data=four")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: &a {x: 1}\nb:\n  <<: *a\n  y: 2", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
        ("a: [1, {b: '${c}'}]", {"a": [1, {"b": "${c}"}]}),
        ("- 1", [1]),
    ],
)
def test_what_is_read_is_plain(text, values, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    assert load_yaml(tmp_path / "a.yaml") == values


def test_only_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo.yaml")
    os.symlink("/dev/zero", tmp_path / "zero.yaml")
    for path in (tmp_path, tmp_path / "fifo.yaml", tmp_path / "zero.yaml", tmp_path / "no.yaml"):
        with pytest.raises(YamlFileError, match="is not a file"):
            load_yaml(path)
