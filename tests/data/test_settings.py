import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from unimem.config import compose

CONF = Path(__file__).parents[2] / "conf" / "data"
KINDS = ["github", "hf", "markov", "pg19", "stdlib", "text", "urn"]


def test_every_kind_has_a_yaml_and_every_yaml_is_valid(settings):
    variants = {path.stem for path in CONF.glob("*.yaml")} - set(KINDS)
    assert variants == {"stdlib_small"}
    assert compose("data=stdlib_small").data.kind == "stdlib"
    for kind in KINDS:
        values = {"text": {"path": "a"}, "hf": {"repository": "a/b"}}.get(kind, {})
        assert settings(kind, **values).kind == kind


def test_every_line_of_yaml_is_explained():
    for path in CONF.glob("*.yaml"):
        first, *lines = path.read_text("utf-8").splitlines()
        assert first.startswith("# ") and first.endswith("."), path
        said = [line for line in lines if not line.startswith(("kind:", "defaults:", "  - "))]
        assert all(" # " in line for line in said), path


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("markov", {"states": 1}, "greater than or equal to 2"),
        ("markov", {"alpha": 0.0}, "greater than 0"),
        ("urn", {"vocab_size": "64"}, "valid integer"),
        ("stdlib", {"held_out": 1.0}, "less than 1"),
        ("stdlib", {"vocab_size": 256}, "greater than or equal to 257"),
        ("pg19", {"validation_split": "train"}, "'validation' or 'test'"),
        ("text", {}, "give data.path=: a file, a folder, or a list of them"),
        ("text", {"path": []}, "give data.path="),
        ("text", {"path": "a", "document_tokens": 1}, "greater than or equal to 2"),
        ("hf", {}, "give data.repository=: a hub id, or a folder"),
        ("hf", {"repository": "a/b", "validation_split": "train"}, "is the split to train on"),
    ],
)
def test_a_wrong_value_is_named(settings, kind, values, message):
    with pytest.raises(ValidationError, match=message):
        settings(kind, **values)


def test_settings_import_no_numpy_and_no_torch():
    check = "import sys, unimem.data.settings; assert not {'numpy', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", check], check=True)
