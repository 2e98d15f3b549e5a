"""A record turned back into overrides means what was recorded."""

import json

import pytest
from helpers.sampled import each
from studies.conftest import BASE, CELLS, TINY, study_file

from unimem.config import ConfigError, compose_node, resolve
from unimem.paths import config_root
from unimem.studies.recorded_run import overrides_of, recorded_run
from unimem.studies.study import expand

METHODS = sorted(f.stem for f in (config_root() / "conf" / "method").glob("*.yaml"))


def record(*overrides: str) -> dict:
    """The configuration as a run's result.json has it."""
    values = resolve(compose_node("train", overrides)) | {"name": "a"}
    return json.loads(json.dumps(values))


def again(recorded: dict) -> dict:
    return resolve(compose_node("train", overrides_of(recorded)))


@pytest.mark.parametrize(
    "overrides",
    [
        *each(8, ([f"method={method}"] for method in METHODS)),
        ["experiment=quickstart_code"],
        [*TINY, "output=/else where", "study=b", "resume=true", "logger.group=b"],
        ["injection_layer=3"],
        ["method=unimix", "injection_layer=3"],
        ["method=unimix", "memory.reading=position", "memory.window=8", "seed=4"],
        ["memory.reading=[similarity,position]", "memory.topk=[7,9]", "memory.positions=capped",
         "memory.injection.layers=[3,5]", "memory.fusion=gated"],
        ["memory.positions=true", "memory.injection=all", "memory.writing=[direct,pooling]"],
        ["method.name=mine", """method.title='a, "b"'""", "trainer.learning_rate=1e-5"],
        ["profile=cpu", "method=rmt", "data=text", "data.path=[/a b,c]", "data.tokenizer='/t=x'"],
        ["profile=tinyllama", "method=longformer", "evaluation.max_tokens=null"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_composing_again_gives_what_was_recorded(overrides):
    recorded, composed = record(*overrides), again(record(*overrides))
    for values in (recorded, composed):
        for key in ("output", "study", "name", "resume"):
            del values[key]
        del values["logger"]["group"]
    assert composed == recorded


@pytest.mark.slow
def test_every_kind_of_cell_is_composed_again(tmp_path):
    plain = expand([*TINY, "seed=1"]).cells
    base = f"base: {json.dumps(['method=vanilla', *BASE])}\n"
    vary = "vary: {injection_layer: '0,1'}"
    based = expand([*CELLS, study_file(tmp_path, base + vary)])
    evaluated = expand([*CELLS, study_file(tmp_path, base + vary), "study.mode=evaluate"])
    for cell in (*plain, *based.runs, *evaluated.cells):
        recorded = record(*cell.overrides.lines)
        composed = again(recorded)
        assert composed | {"name": "a"} == recorded


def test_only_what_is_not_said_already_is_named():
    found = overrides_of(record("method=unimix", "memory.topk=8", "model=nano", "data=markov"))
    assert found == ["method=unimix", "data=markov", "memory.topk=8"]


def test_settings_that_this_version_lacks_are_named():
    recorded = record(*TINY)
    recorded["trainer"]["speed"] = 3
    with pytest.raises(ConfigError, match="this version has no such setting: trainer.speed=3"):
        overrides_of(recorded)


def test_a_run_that_cannot_be_a_base(tmp_path):
    with pytest.raises(ConfigError, match="base=.*is not the folder of a run"):
        recorded_run(tmp_path)
    result = {"config": record(*TINY)}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match="base=.*recorded by an earlier version"):
        recorded_run(tmp_path)
    result |= {"signature": "0"}
    (tmp_path / "result.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match="base=.*holds no model/"):
        recorded_run(tmp_path)
    (tmp_path / "model").mkdir()
    gone = record("data=text", "data.path=/gone", "injection_layer=0")
    (tmp_path / "result.json").write_text(json.dumps(result | {"config": gone}))
    with pytest.raises(ConfigError, match="base=.*/gone"):
        recorded_run(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps(result | {"corpus": {"digest": "0" * 64}}))
    with pytest.raises(ConfigError, match="is not what the run was trained on: digest .* 000000"):
        recorded_run(tmp_path)
