"""One cell: composed, checked and signed; and what a command reads for itself."""

import pytest
from studies.conftest import BASE, CELLS, TINY

from unimem.config import ConfigError, compose, compose_node, resolve
from unimem.runs.signature import data_digest, signature
from unimem.studies.cells import SweepOptions, make_cell, parse, read_options


@pytest.fixture
def options(tmp_path) -> SweepOptions:
    return read_options(SweepOptions, "sweep", parse([f"output={tmp_path}"]))


def test_a_cell_is_signed_and_has_a_folder_of_its_own(options, tmp_path):
    cell = make_cell("it", TINY, options)
    assert cell.config == compose(*TINY)
    assert cell.signature == signature(cell.config, data_digest(cell.config.data))
    assert (
        cell.folder == tmp_path / "cells" / f"transformer_xl-2x16-markov-s0-{cell.signature[:12]}"
    )
    assert (cell.label, cell.overrides.lines, cell.base, cell.problem) == ("it", TINY, None, "")


def test_a_cell_is_named_by_the_shape_of_the_model_that_all_began_with(options):
    first = make_cell("a", ["method=vanilla", *BASE], options)
    second = make_cell("b", [*CELLS, "seed=1"], options, first)
    third = make_cell("c", [*CELLS, "seed=2"], options, second)
    assert third.first() is first
    assert third.config.model.name == str((second.folder / "model").resolve())
    names = [cell.folder.name.rsplit("-", 1)[0] for cell in (first, second, third)]
    assert names == [
        "vanilla-2x16-markov-s0", "transformer_xl-2x16-markov-s1", "transformer_xl-2x16-markov-s2"
    ]  # fmt: skip


def test_what_an_experiment_says_of_a_model_from_scratch_is_left_out_with_a_base(options):
    base = make_cell("a", ["experiment=quickstart_markov_none"], options)
    cell = make_cell("b", ["experiment=quickstart_markov"], options, base)
    assert cell.config.model.kind == "pretrained" and cell.config.num_layers() == 2
    assert cell.config.model.learning_rate == base.config.model.learning_rate == 2e-3
    assert "~model.hidden_size" in cell.overrides.lines
    assert resolve(compose_node("train", cell.overrides.lines))["model"].keys() == {
        "kind", "name", "revision", "num_layers", "dtype", "tokenizer", "parameters",
        "sliding_window", "learning_rate",
    }  # fmt: skip


def test_all_that_is_wrong_with_a_cell_is_told(options):
    with pytest.raises(ConfigError) as error:
        make_cell("a", [*TINY, "memory.size=0", "memory.window=-1"], options)
    assert "memory.size" in str(error.value) and "memory.window" in str(error.value)
    with pytest.raises(ConfigError, match="/nowhere"):
        make_cell("a", ["data=text", "data.path=/nowhere"], options)


def test_options_are_what_the_command_itself_is_told(tmp_path):
    found = read_options(SweepOptions, "sweep", parse(["jobs=3", "memory.topk=1,2", "jobs=4"]))
    assert (found.study, found.jobs, found.dry_run) == ("sweep", 4, False)
    assert (found.launcher, found.launcher_settings) == ("local", {})


def test_overrides_are_kept_as_they_are_written():
    found = parse(["a=1", "+b.c='x y'", "~d", "a=2"])
    assert [*found] == ["a", "b.c", "d"]
    assert found.lines == ("a=2", "+b.c='x y'", "~d")


def test_overrides_are_parted_by_name():
    found = parse(["memory.size=1", "memory.reading=all", "memory_size=2", "seed=3"])
    assert found.under(("memory",)).lines == ("memory.size=1", "memory.reading=all")
    assert found.without(("memory", "seed")).lines == ("memory_size=2",)
    assert (found | parse(["seed=4", "data=urn"])).lines == (
        "memory.size=1", "memory.reading=all", "memory_size=2", "seed=4", "data=urn"
    )  # fmt: skip
