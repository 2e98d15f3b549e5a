"""study.mode=evaluate: what cells take from the run whose weights they read with."""

import json
import logging
from pathlib import Path

import pytest
from studies.conftest import BASE, CELLS, TINY, study_file

from unimem.config import ConfigError, compose, compose_node, resolve
from unimem.data.build import build_corpus
from unimem.studies.run.cell_state import finished
from unimem.studies.study import Study, expand

EVALUATE = "study.mode=evaluate"


def finished_run(folder: Path, *overrides: str) -> str:
    """Write what a study reads of a finished run, and give the argument that names it."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    config = resolve(compose_node("train", overrides)) | {"name": folder.name}
    digest = build_corpus(compose(*overrides).data).digest
    record = {"config": config, "corpus": {"digest": digest}, "signature": f"of {folder.name}"}
    (folder / "result.json").write_text(json.dumps(record))
    return f"base={folder}"


def of_file(tmp_path, *arguments: str, base=TINY, vary="{memory.window: '0,4,12'}") -> Study:
    file = study_file(tmp_path, f"base: {json.dumps([*base])}\nstudy.mode: evaluate\nvary: {vary}")
    return expand([file, *arguments])


def test_cells_read_with_the_weights_of_a_run_that_is_there(tmp_path):
    base = finished_run(tmp_path / "runs" / "a", *TINY, "seed=3")
    study = expand([EVALUATE, base, "memory.window=0,4,12", f"output={tmp_path}"])
    assert [cell.label for cell in study.cells] == [f"memory.window={w}" for w in (0, 4, 12)]
    (run,) = study.bases
    assert (
        run.folder == tmp_path / "runs" / "a"
        and finished(run)
        and study.fields["mode"] == "evaluate"
    )
    for cell, window in zip(study.cells, (0, 4, 12), strict=True):
        config = cell.config
        assert config.memory.flat()["memory.window"] == window
        assert config.memory.flat()["memory.size"] == 12
        assert config.model.name == str((run.folder / "model").resolve())
        assert config.model.num_layers == 2
        assert (config.trainer.max_steps, config.seed) == (0, 3)
        assert config.data == run.config.data and config.evaluation == run.config.evaluation
        assert cell.folder.parent == tmp_path / "cells"
        assert cell.folder.name.startswith("transformer_xl-2x16-markov-s3-")


def test_cells_read_with_the_weights_of_a_base_that_is_trained_first(tmp_path):
    study = of_file(tmp_path)
    (base,) = study.bases
    assert base.config.trainer.max_steps == 8
    assert {cell.config.trainer.max_steps for cell in study.cells} == {0}
    assert len(study.runs) == 4
    other = of_file(tmp_path, "study.mode=train", "method=vanilla", "data=markov", vary="{seed: 1}")
    assert other.fields["mode"] == "train"
    assert other.cells[0].config.trainer.max_steps == compose().trainer.max_steps


def test_every_seed_is_read_with_weights_of_its_own(tmp_path):
    study = of_file(tmp_path, base=(*TINY, "seed"), vary="{memory.window: '0,4', seed: '0,1'}")
    assert len(study.bases) == 2
    for cell in study.cells:
        assert cell.base is not None and cell.config.seed == cell.base.config.seed


def test_several_runs_are_read_by_naming_them(tmp_path):
    a, b = (finished_run(tmp_path / n, *TINY, f"seed={i}") for i, n in enumerate("ab"))
    study = expand([EVALUATE, f"{a},{b.removeprefix('base=')}", "memory.window=4"])
    assert [cell.label for cell in study.cells] == [a, b]
    assert [cell.config.seed for cell in study.cells] == [0, 1]


def test_another_choice_drops_budgets_that_nothing_uses(tmp_path, caplog):
    base = finished_run(tmp_path / "a", *TINY)
    with caplog.at_level(logging.WARNING):
        (cell,) = expand([EVALUATE, base, "memory.reading=similarity", "memory.topk=3"]).cells
    flat = cell.config.memory.flat()
    assert flat["memory.reading"] == "similarity" and flat["memory.topk"] == 3
    assert flat["memory.size"] == 12 and "memory.window" not in flat
    assert "memory.window=12 of the base is not used" in caplog.text


def test_another_method_brings_its_own_memory(tmp_path):
    base = finished_run(tmp_path / "a", *TINY, "memory.positions=true", "injection_layer=1")
    (cell,) = expand([EVALUATE, base, "method=full_context"]).cells
    expected = compose("method=full_context", "memory.segment_length=8").memory
    assert cell.config.memory == expected


def test_another_injection_is_not_held_back_by_the_layer_of_the_base(tmp_path):
    base = finished_run(tmp_path / "a", *TINY, "injection_layer=1")
    (cell,) = expand([EVALUATE, base, "memory.injection=all"]).cells
    assert list(cell.config.memory.plan(2).layers) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([EVALUATE, *TINY], "study.mode=evaluate reads with weights that are trained: name a fini"),
        (["study.mode=read", *TINY], "study.mode=read is not a mode; choose train or evaluate"),
        ([EVALUATE, "base=/nowhere", "memory.topk=3"], "base=/nowhere: /nowhere does not exist"),
        ([EVALUATE, "BASE", "seed=1,2"], "seed varies, but study.mode=evaluate trains nothing"),
        ([EVALUATE, "BASE", "trainer.learning_rate=1,2"], "trainer.learning_rate varies"),
        ([EVALUATE, "BASE", "seed=1"], "seed=1, but the weights are of a base run with seed=0"),
        (
            [EVALUATE, "BASE", "memory.fusion=gated"],
            "the base has no gates of layer 0, gates of layer 1; it has no weights of memory",
        ),
        ([EVALUATE, "BASE", "method=rmt"], "the base has no 40 soft tokens"),
        ([EVALUATE, "BASE", "model=nano"], "the model of a study with base: is its base's"),
        ([EVALUATE, "BASE", "memory.topk=3"], "memory.topk is not a setting"),
        ([EVALUATE, "BASE", "memory.window=-1"], "memory.window: .*greater than or equal to 0"),
    ],
)
def test_mistakes(tmp_path, arguments, message):
    base = finished_run(tmp_path / "a", *TINY)
    with pytest.raises(ConfigError, match=message):
        expand([base if argument == "BASE" else argument for argument in arguments])


def test_cells_of_a_study_in_train_mode_may_start_from_a_run_that_is_there(tmp_path):
    base = finished_run(tmp_path / "a", "method=vanilla", *BASE)
    (cell,) = expand([*CELLS, base, "injection_layer=1"]).cells
    assert cell.config.trainer.max_steps == 8
    assert cell.config.model.name == str(tmp_path / "a" / "model")
