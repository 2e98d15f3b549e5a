"""The reference of settings is made from the yaml files and the types, and is complete."""

import re

import pytest

from unimem.cli.settings import page
from unimem.config import SETTINGS, compose_node
from unimem.memory.registry import DIMENSIONS, field_types, option_names
from unimem.paths import CONFIG_DIR, config_root
from unimem.reference import explain, find, settings


def test_the_page_is_up_to_date():
    file = config_root() / "docs" / "settings.md"
    assert file.read_text() == page(), "run python -m unimem.cli.settings > docs/settings.md"


def test_every_setting_of_a_run_is_there_with_a_meaning():
    named = {setting.name: setting for setting in settings() if not setting.command}
    declared = {
        name for name in SETTINGS
        if not re.fullmatch(r"method(\..*)?|model|data|trainer|evaluation|logger|memory|attention|"
                            r".*\.kind|memory\.(management|writing|reading|injection)", name)
    }  # fmt: skip
    knobs = {
        f"memory.{knob}"
        for dimension in DIMENSIONS if dimension != "injection"
        for option in option_names(dimension)
        for knob in field_types(dimension, option)
    }  # fmt: skip
    assert declared | knobs <= named.keys()
    for setting in named.values():
        assert setting.default, setting
        assert setting.allowed or setting.name.endswith((".kind", "segment_length")), setting


def test_defaults_are_those_that_compose():
    node = compose_node("train", [])
    for name, default in (("trainer.batch_size", "2"), ("memory.topk", "32"), ("seed", "0")):
        (setting,) = (setting for setting in find(name) if not setting.command)
        value = node
        for part in name.split("."):
            value = value[part]
        assert setting.default == default == str(value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("memory.topk", ["whole number from 0", "with     memory.reading=similarity"]),
        ("topk", ["memory.topk"]),
        ("memory.fusion", ["joint, gated, grouped"]),
        ("memory.positions", ["capped"]),
        ("memory.injection.layers", ["upper_half", "fraction of the depth"]),
        ("trainer.learning_rate", ["number from 0"]),
        ("data.length", ["whole number from 2", "data=markov"]),
        ("jobs", ["unimem-sweep"]),
    ],
)
def test_a_setting_is_explained(name, words):
    said = "\n".join(map(explain, find(name)))
    for word in words:
        assert word in said


def test_options_of_ones_own_are_in_it(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [markov]\nlength: 77 # of mine\n")
    monkeypatch.setenv(CONFIG_DIR, str(tmp_path))
    (setting,) = (setting for setting in find("data.length"))
    assert "mine: 77" in setting.default and "data=mine" in setting.options
