"""The runs that cells start from: which there are, and what reaches them."""

import json

import pytest
from studies.conftest import BASE, CELLS, TINY, study_file

from unimem.config import ConfigError, compose_node
from unimem.studies.bases import REACH_BASE, is_setting
from unimem.studies.run.cell_state import write_study
from unimem.studies.study import expand


def study(
    tmp_path, *arguments: str, base=("method=vanilla", *BASE), vary="{injection_layer: '0,1'}"
):
    file = study_file(tmp_path, f"base: {json.dumps([*base])}\nvary: {vary}")
    return expand([*CELLS, file, *arguments])


def test_cells_start_from_the_base_run(tmp_path):
    found = study(tmp_path)
    (base,) = found.bases
    assert base.label == "base" and found.runs == (base, *found.cells)
    for cell in found.cells:
        assert cell.base is base
        assert cell.config.num_layers() == 2
        assert cell.config.model.name == str((base.folder / "model").resolve())
    moved = study(tmp_path, f"output={tmp_path}")
    assert [c.signature for c in moved.runs] == [c.signature for c in found.runs]
    with pytest.raises(ConfigError, match=r"injection_layer=2 but the model has 2 layers"):
        study(tmp_path, "injection_layer=2")
    with pytest.raises(ConfigError, match="model=nano: the model of a study with base"):
        study(tmp_path, "model=nano")


def test_an_entry_without_a_value_is_as_in_the_cell(tmp_path):
    found = study(
        tmp_path,
        base=("method=vanilla", *BASE, "seed", "data"),
        vary="{seed: '0,1', data.seed: '3,4', injection_layer: '0,1'}",
    )
    assert len(found.cells) == 8 and len(found.runs) == 12
    assert {base.label for base in found.bases} == {
        f"base seed={seed} data.seed={other}" for seed in (0, 1) for other in (3, 4)
    }
    for cell in found.cells:
        assert cell.base is not None
        assert cell.config.seed == cell.base.config.seed
        assert cell.config.data == cell.base.config.data
        assert cell.base.config.method.name == "vanilla"


def test_a_base_may_follow_the_model_that_its_cells_would_have(tmp_path):
    base = [a for a in BASE if not a.startswith("model")]
    file = study_file(
        tmp_path, f"base: {json.dumps([*base, 'method=vanilla', 'model'])}\n"
        "vary: {model: 'tiny,micro', model.hidden_size: '24,48'}"
    )  # fmt: skip
    found = expand([*CELLS, file, "injection_layer=0"])
    assert [cell.label for cell in found.cells] == [
        f"model={model} model.hidden_size={size}"
        for model in ("tiny", "micro")
        for size in (24, 48)
    ]
    sizes = [
        (cell.base.config.model.hidden_size, cell.base.config.num_layers()) for cell in found.cells
    ]
    assert sizes == [(24, 4), (48, 4), (24, 6), (48, 6)]
    assert [cell.config.num_layers() for cell in found.cells] == [4, 4, 6, 6]


def test_bases_that_are_the_same_run_are_one(tmp_path):
    found = study(tmp_path, base=("method=vanilla", *BASE, "logger"), vary="{logger: 'none,wandb'}")
    assert len(found.bases) == 1
    (cell,) = found.cells
    assert cell.base is found.bases[0]


def test_what_reaches_the_base_from_the_command_line(tmp_path):
    found = study(
        tmp_path, "trainer.threads=2", "trainer.learning_rate=1e-4", "logger.mode=offline", "seed=4"
    )
    (base,) = found.bases
    assert (base.config.trainer.threads, base.config.logger.mode) == (2, "offline")
    assert (base.config.trainer.learning_rate, base.config.seed) == (2e-3, 0)
    assert {cell.config.seed for cell in found.cells} == {4}


@pytest.mark.parametrize("key", REACH_BASE)
def test_what_reaches_the_base_can_be_set(key):
    assert is_setting(compose_node("train", ["data=stdlib"]), key)


def test_a_cache_does_not_reach_a_base_whose_data_has_none(tmp_path):
    (tmp_path / "a.txt").write_text("words " * 600)
    (tmp_path / "b.txt").write_text("others " * 600)
    text = ["data=text", f"data.path={tmp_path}", "data.held_out=0.5", f"data.cache={tmp_path}/c"]
    file = study_file(tmp_path, f"base: {json.dumps(['method=vanilla', *BASE])}\nvary: {{seed: 0}}")
    cells = [a for a in CELLS if not a.startswith("data")]
    with pytest.raises(ConfigError, match="was trained with the markov of 8 tokens, but data=text"):
        expand([*cells, file, *text, "injection_layer=0"])


def test_the_record_says_which_cell_starts_from_which_base(tmp_path):
    found = study(
        tmp_path, f"output={tmp_path}", "study=a", base=("method=vanilla", *BASE, "seed"),
        vary="{seed: '0,1'}",
    )  # fmt: skip
    record = json.loads(write_study(found).read_text())
    assert [base["label"] for base in record["bases"]] == ["base seed=0", "base seed=1"]
    signatures = [base["signature"] for base in record["bases"]]
    assert [cell["base"] for cell in record["cells"]] == signatures
    assert (record["mode"], record["profile"]) == ("train", None)
    assert "base" not in record
    for entry in (*record["bases"], *record["cells"]):
        assert entry["folder"].startswith("cells/")
    alone = expand([*TINY, f"output={tmp_path}"])
    record = json.loads(write_study(alone).read_text())
    assert record["bases"] == [] and record["cells"][0]["base"] is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("sede", "base: sede is not a setting; an entry is name=value"),
        ("seed=0,1", "base: seed=0,1 gives several values"),
        ("memory.tpok=3", "base: memory.tpok is not a setting"),
        ("method=nope", "base: method=nope is not an option"),
    ],
)
def test_mistakes(tmp_path, entry, message):
    with pytest.raises(ConfigError, match=message):
        study(tmp_path, base=("method=vanilla", *BASE, entry))


@pytest.mark.parametrize("way", ["defaults: [override /profile: cpu]", "profile: cpu"])
def test_a_profile_of_the_file_itself_reaches_the_base(tmp_path, way):
    text = "base: [method=vanilla, data=markov]\nvary: {injection_layer: '0,1'}"
    found = expand([study_file(tmp_path, f"{way}\n{text}"), "data=markov"])
    assert {run.config.num_layers() for run in found.runs} == {6}
    assert {run.config.trainer.batch_size for run in found.runs} == {16}


def test_how_a_run_is_recorded_reaches_the_base_unless_it_says_so_itself(tmp_path):
    text = "defaults: [override /logger: none]\ntrainer: {threads: 3}\nvary: {seed: 1}\n"
    base = ["method=vanilla", "data=markov", "trainer.threads=2"]
    file = study_file(tmp_path, f"{text}base: {json.dumps(base)}")
    found = expand([file, "injection_layer=0", "data=markov"])
    (start,), (cell,) = found.bases, found.cells
    assert start.config.logger.mode == cell.config.logger.mode == "disabled"
    assert (start.config.trainer.threads, cell.config.trainer.threads) == (2, 3)


def test_a_model_that_an_experiment_says_is_not_passed_over_in_silence(tmp_path, caplog):
    text = "base: [method=vanilla, data=markov, model=tiny]\nvary: {seed: 1}"
    expand([study_file(tmp_path, text), "experiment=quickstart_markov", "injection_layer=0"])
    assert "model.hidden_size=64" in caplog.text and "the model is the base's" in caplog.text
