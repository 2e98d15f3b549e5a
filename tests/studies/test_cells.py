import logging
import subprocess
import sys

import pytest
from studies.conftest import TINY

from unimem.config import ConfigError
from unimem.paths import config_root
from unimem.studies.cells import expand

STUDIES = sorted(f.stem for f in (config_root() / "sweeps").glob("*.yaml"))


def labels(*arguments: str) -> list[str]:
    return [cell.label for cell in expand([*TINY, *arguments]).cells]


def study_file(tmp_path, text: str) -> str:
    file = tmp_path / "a.yaml"
    file.write_text(text)
    return f"sweeps={file}"


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
    assert {cell.config.injection_layer for cell in study.cells} == {1}
    assert {cell.config.seed for cell in study.cells} == {7}
    assert study.options.study == "b"


def test_the_folder_is_the_same_in_every_study():
    one, other = expand([*TINY, "seed=1,2"]), expand([*TINY, "study=other", "seed=2", "jobs=3"])
    assert one.cells[1].folder == other.cells[0].folder
    assert one.cells[1].folder.name.endswith(one.cells[1].signature[:12])


def test_cells_start_from_the_base_run(tmp_path):
    base = [a for a in TINY if not a.startswith(("method", "memory.size", "memory.window"))]
    cells = [a for a in TINY if not a.startswith("model")]
    file = study_file(
        tmp_path, f"base: {['method=vanilla', *base]}\nvary: {{injection_layer: '0,1'}}"
    )
    study = expand([*cells, file])
    assert study.base is not None and study.runs == (study.base, *study.cells)
    for cell in study.cells:
        assert cell.base is study.base
        assert cell.config.num_layers() == 2
        assert cell.config.model.name == str((study.base.folder / "model").resolve())
    moved = expand([*cells, file, f"output={tmp_path}"])
    assert [c.signature for c in moved.runs] == [c.signature for c in study.runs]
    with pytest.raises(ConfigError, match=r"injection_layer=2 but the model has 2 layers"):
        expand([*cells, file, "injection_layer=2"])
    with pytest.raises(ConfigError, match="model=nano: the model of a study with base"):
        expand([*cells, file, "model=nano"])


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
        (["sweeps=nope"], "sweeps=nope is not an option; choose from injection_layer"),
        (["name=a"], "name cannot be set in a sweep"),
        (["jobs=0"], "jobs: Input should be greater than 0"),
        (["jobs=1,2"], "jobs takes one value"),
        (["launcher=ray"], "launcher: Input should be 'local' or 'slurm'"),
        (["slurm.tiemout=3"], "slurm.tiemout is not a setting"),
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


@pytest.mark.parametrize("name", STUDIES)
def test_studies_that_are_shipped_expand(name):
    study = expand([f"sweeps={name}", "data=markov", "injection_layer=0,1"])
    assert len(study.cells) == 2 and study.options.study == name


def test_nothing_of_this_needs_torch():
    code = (
        "import sys; from unimem.studies.cells import expand;"
        f"expand({[*TINY, 'seed=0']!r}); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
