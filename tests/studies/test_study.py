import logging
import subprocess
import sys

import pytest
from studies.conftest import TINY, study_file

from unimem.config import ConfigError, compose
from unimem.studies.study import expand


def labels(*arguments: str) -> list[str]:
    return [cell.label for cell in expand([*TINY, *arguments]).cells]


def test_a_sweep_is_the_product_of_its_values():
    found = labels("injection_layer=range(0,2)", "seed=3,5")
    assert found == [f"injection_layer={i} seed={s}" for i in (0, 1) for s in (3, 5)]


def test_a_list_of_grids_is_their_union_and_each_cell_is_there_once(tmp_path, caplog):
    file = study_file(tmp_path, "vary: [{seed: '1,2'}, {seed: '2,3'}]")
    with caplog.at_level(logging.WARNING):
        assert labels(file) == ["seed=1", "seed=2", "seed=3"]
    assert "is the same run as seed=2" in caplog.text


def test_the_command_line_comes_before_the_file(tmp_path):
    file = study_file(tmp_path, "study: b\nseed: 7\nvary: {injection_layer: '0,1'}")
    study = expand([*TINY, file, "injection_layer=1", "trainer.max_steps=2,3"])
    assert [cell.label for cell in study.cells] == ["trainer.max_steps=2", "trainer.max_steps=3"]
    assert [cell.config.memory.injection for cell in study.cells] == [{"layers": [1]}] * 2
    assert {cell.config.seed for cell in study.cells} == {7}
    assert study.options.study == "b"


def test_the_folder_is_the_same_in_every_study():
    one, other = expand([*TINY, "seed=1,2"]), expand([*TINY, "study=other", "seed=2", "jobs=3"])
    assert one.cells[1].folder == other.cells[0].folder
    assert one.cells[1].folder.name.endswith(one.cells[1].signature[:12])


def test_all_problems_of_all_cells_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        labels("injection_layer=0,1,2,3", "memory.size=0,12")
    text = str(error.value)
    assert "memory.size: Input should be greater than 0 (got 0)" in text
    for layer in (2, 3):
        assert f"injection_layer={layer} but the model has 2 layers" in text
    assert "and 1 more" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["injection_layer=range(1,1)"], r"0 cells: no values in injection_layer=range\(1,1\)"),
        (["memory.tpok=1,2"], "memory.tpok is not a setting"),
        (["sweeps=nope"], "sweeps=nope is not an option; choose from .*injection_layer"),
        (["name=a"], "name cannot be set in a sweep"),
        (["jobs=0"], "jobs: Input should be greater than 0"),
        (["jobs=1,2"], "jobs takes one value"),
        (["launcher=ray"], "launcher=ray is not an option; choose from local, slurm"),
        (
            ["slurm.partition=a"],
            "slurm.partition is no setting of launcher=local; .* launcher=slurm",
        ),
        (["launcher=slurm", "slurm.tiemout=3"], "slurm.tiemout is not a setting"),
        (["seed==1"], "write name=value"),
        (["seed=interval(0,1)"], "cannot be listed"),
        (["method=glob(*)"], "name the values"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        labels(*arguments)


def test_data_that_is_missing_is_told_before_anything_starts(tmp_path):
    with pytest.raises(ConfigError, match="/nowhere"):
        expand(["data=text", "data.path=/nowhere", f"data.cache={tmp_path}", "seed=0,1"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["topk_window", "context_length"])
def test_a_study_that_is_shipped_reads_with_the_cells_of_another(name, tmp_path):
    study = expand([f"sweeps={name}", "data=markov", "seed=0", f"output={tmp_path}"])
    assert len(study.cells) > 1 and study.options.study == name
    assert all(cell.base is not None and cell.base.base is not None for cell in study.cells)


@pytest.mark.slow
def test_without_the_hub_a_study_can_still_be_listed():
    study = expand(["sweeps=memory_size", "profile=llama2_7b", "dry_run=true", "seed=0"])
    assert study.options.study == "memory_size-llama2_7b" and len(study.cells) > 1
    assert all(cell.config.model.kind == "pretrained" for cell in study.cells)


PROFILES = """
study: a
defaults: [override /data: markov]
memory: {size: 100, segment_length: 32}
trainer: {max_steps: 7}
vary: {seed: "0,1", injection_layer: "0,1"}
profiles:
  cpu: {memory: {size: 200}}
  tinyllama:
    memory: {size: 300}
    trainer: {learning_rate: 1.0e-5}
    base: [method=vanilla, data]
    vary: {injection_layer: "21"}
"""


def test_the_first_profile_is_the_default(tmp_path):
    file = study_file(tmp_path, PROFILES)
    study = expand([file])
    assert study.options.study == "a" and study.fields["profile"] == "cpu"
    assert len(study.cells) == 4 and not study.bases
    for cell in study.cells:
        assert cell.overrides.lines[0] == "profile=cpu"
        assert cell.config.model.kind == "scratch"
        assert cell.config.memory.flat()["memory.size"] == 200
        # the profile's own settings, then the file's, then the command line's
        assert (
            cell.config.trainer.learning_rate
            == compose("profile=cpu", "injection_layer=0").trainer.learning_rate
        )
        assert (cell.config.memory.segment_length, cell.config.trainer.max_steps) == (32, 7)
    (cell, *_) = expand([file, "trainer.max_steps=9", "seed=0", "injection_layer=1"]).cells
    assert cell.config.trainer.max_steps == 9
    assert "profiles" not in study.fields


def test_another_profile_has_a_folder_of_its_own_and_reaches_the_base(tmp_path):
    file = study_file(tmp_path, PROFILES)
    study = expand([file, "profile=tinyllama"])
    assert study.options.study == "a-tinyllama" and study.fields["profile"] == "tinyllama"
    (cell,) = study.cells
    (base,) = study.bases
    assert base.overrides.lines[0] == cell.overrides.lines[0] == "profile=tinyllama"
    assert base.config.model.name.startswith("TinyLlama/")
    assert (cell.config.num_layers(), cell.config.trainer.learning_rate) == (22, 1e-5)
    assert cell.config.memory.flat()["memory.size"] == 300
    named = expand([file, "profile=tinyllama", "study=b"])
    assert named.options.study == "b"
    assert [run.signature for run in named.runs] == [run.signature for run in study.runs]


def test_a_profile_of_a_study_without_profiles_is_an_override(tmp_path):
    file = study_file(tmp_path, "defaults: [override /data: markov]\nvary: {seed: '0,1'}")
    study = expand([file, "profile=cpu", "injection_layer=0"])
    assert study.options.study == "sweep" and study.fields["profile"] is None
    assert {cell.config.num_layers() for cell in study.cells} == {6}


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("nope", "profile=nope is not a profile of sweeps=.*; choose from cpu, tinyllama"),
        ("cpu,tinyllama", "profile=cpu,tinyllama: profile takes one value"),
    ],
)
def test_mistakes_in_a_profile(tmp_path, profile, message):
    with pytest.raises(ConfigError, match=message):
        expand([study_file(tmp_path, PROFILES), f"profile={profile}"])


def test_a_study_may_be_listed_without_its_data(tmp_path):
    missing = ["data=text", "data.path=/nowhere", f"data.cache={tmp_path}", "seed=0,1"]
    cells = expand([*missing, "dry_run=true"]).cells
    assert len(cells) == 2 and all("/nowhere" in cell.problem for cell in cells)


def test_nothing_of_this_needs_torch():
    code = (
        "import sys; from unimem.studies.study import expand;"
        f"expand({[*TINY, 'seed=0']!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


PLAIN = ("model=tiny", "data=markov", "memory.segment_length=64", "trainer.max_steps=2")


def test_methods_of_a_sweep_are_trained_on_as_many_tokens(caplog):
    methods = "method=vanilla,rmt"
    own = [compose(*PLAIN, f"method={m}").segments_per_step() for m in ("vanilla", "rmt")]
    assert own == [1, 2]
    with caplog.at_level(logging.INFO):
        cells = expand([*PLAIN, methods]).cells
    assert [cell.config.segments_per_step() for cell in cells] == [2, 2]
    assert "trainer.segments_per_step=2 in every cell, so that all are trained on" in caplog.text
    assert "different numbers of tokens" not in caplog.text
    alone = expand([*PLAIN, "method=rmt"]).cells[0]
    assert alone.config.segments_per_step() == 2


@pytest.mark.parametrize(("given", "segments"), [("null", [1, 2]), ("3", [3, 3])])
def test_a_number_of_segments_that_is_given_stays(caplog, given, segments):
    with caplog.at_level(logging.INFO):
        study = expand([*PLAIN, "method=vanilla,rmt", f"trainer.segments_per_step={given}"])
    assert [cell.config.segments_per_step() for cell in study.cells] == segments
    assert ("different numbers of tokens: up to" in caplog.text) == (given == "null")
