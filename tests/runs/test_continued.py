"""What a continued run may change."""

import logging

import pytest

from unimem.config import ConfigError, compose, compose_node, resolve
from unimem.runs.continued import MAY_DIFFER, WITHOUT_EFFECT, among, require_same
from unimem.runs.signature import signature


def test_names_are_of_settings_and_of_nodes_of_them():
    assert among("logger.csv", ("logger",)) and among("name", ("name",))
    assert not among("names", ("name",)) and not among("log", ("logger",))


@pytest.mark.parametrize("name", MAY_DIFFER)
def test_every_name_is_a_setting(name, tmp_path):
    node = resolve(compose_node("train", ["model=hf", "model.name=x", "data=text", "data.path=x"]))
    for part in name.split("."):
        assert part in node
        node = node[part]


@pytest.mark.parametrize("name", [name for name in WITHOUT_EFFECT if name != "model.parameters"])
def test_what_cannot_change_a_number_is_not_signed_and_may_change(name, tmp_path):
    given = ["model=tiny", "data=text", "data.path=x"]
    value = {"resume": "auto", "logger": "csv", "memory.device": "cpu", "method.exact": "false"}
    number = 7 if name.startswith("trainer.") else "other"
    before = compose(*given)
    changed = compose(*given, f"{name}={value.get(name, number)}")
    assert changed.record() != before.record()
    assert signature(changed, "") == signature(before, "")
    require_same(before.record(), changed.record(), tmp_path, resume="resume=true", finished=False)


def test_settings_of_a_finished_run_that_would_not_be_used_are_told(tmp_path, caplog):
    before, now = {"evaluation": {"documents": 3}}, {"evaluation": {"documents": 5}}
    with caplog.at_level(logging.WARNING):
        require_same(before, now, tmp_path, resume="resume=auto", finished=False)
        assert not caplog.messages
        require_same(before, now, tmp_path, resume="resume=auto", finished=True)
    assert "evaluation.documents is not used; unimem-eval run=" in caplog.text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("true", True), ("True", True), ("FALSE", False), ("auto", "auto"), ("Auto", "auto")],
)
def test_what_resume_may_be(given, meant):
    assert compose("model=tiny", "data=markov", "name=a", f"resume={given}").resume == meant


@pytest.mark.parametrize("given", ["yes", "1", "null", "maybe"])
def test_what_resume_may_not_be_is_told_with_what_it_may(given):
    with pytest.raises(ConfigError, match=r"resume: write true .*, auto .*, or false \(got"):
        compose("model=tiny", "data=markov", "name=a", f"resume={given}")
