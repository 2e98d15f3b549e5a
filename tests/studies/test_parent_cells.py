"""Studies that read with the weights of another study's cells."""

import json
from pathlib import Path

import pytest
from studies.conftest import BASE, CELLS

from unimem.config import ConfigError
from unimem.studies.run.cell_state import write_study
from unimem.studies.study import Study, expand

XL = {"method": "transformer_xl", "memory.size": 12, "memory.window": 12}


@pytest.fixture
def other(tmp_path) -> Path:
    """A study of two methods and two seeds, whose cells start from a base."""
    own = [a for a in CELLS if not a.startswith(("method", "memory.size", "memory.window"))]
    fixed = dict(line.split("=") for line in own if line != "logger=none")
    values = {key: json.loads(x) if x.isdigit() else x for key, x in fixed.items()}
    file = tmp_path / "other.yaml"
    study = values | {
        "study": "other",
        "base": ["method=vanilla", *BASE],
        "vary": [
            {"seed": "0,1"} | XL,
            {"seed": "0,1", "method": "rmt", "memory.num_soft_tokens": 3},
        ],
    }
    file.write_text(json.dumps(study))
    return file


def reading(tmp_path, other: Path, *arguments: str, vary="{memory.size: '6,12'}", **where) -> Study:
    base = json.dumps({"sweeps": str(other), "where": where})
    file = tmp_path / "a.yaml"
    file.write_text(f"study.mode: evaluate\nbase: {base}\nvary: {vary}\n")
    return expand([f"sweeps={file}", f"output={tmp_path}", "logger=none", *arguments])


@pytest.mark.slow
def test_there_is_a_cell_for_each_that_is_chosen_and_each_combination(tmp_path, other):
    study = reading(tmp_path, other, method="transformer_xl")
    assert [cell.label for cell in study.cells] == [
        f"seed={seed} memory.size={size}" for seed in (0, 1) for size in (6, 12)
    ]
    trained = expand([f"sweeps={other}", f"output={tmp_path}", "logger=none"])
    by_signature = {cell.signature: cell for cell in trained.runs}
    assert len(study.runs) == 1 + 2 + 4
    assert [run.base and run.base.signature for run in study.bases] == [
        None, study.bases[0].signature, study.bases[0].signature
    ]  # fmt: skip
    for run in study.bases:
        assert run.folder == by_signature[run.signature].folder
    for cell in study.cells:
        assert cell.base is not None and cell.config.seed == cell.base.config.seed
        assert cell.folder.name.startswith(f"transformer_xl-2x16-markov-s{cell.config.seed}-")
    record = json.loads(write_study(study).read_text())
    assert [entry["base"] for entry in record["bases"]] == [
        None,
        *[record["bases"][0]["signature"]] * 2,
    ]


def test_the_command_line_chooses_among_them(tmp_path, other):
    study = reading(tmp_path, other, "seed=1", "method=transformer_xl")
    assert [cell.config.seed for cell in study.cells] == [1, 1]
    both = reading(tmp_path, other, "seed=0,1", method=["rmt"], vary="{evaluation.documents: 2}")
    assert [cell.config.seed for cell in both.cells] == [0, 1]
    assert {cell.config.memory.label("writing") for cell in both.cells} == {"model_forward"}


@pytest.mark.parametrize(
    ("arguments", "where", "message"),
    [
        ([], {"method": "unimix"}, "base: sweeps=.*other.yaml has no cell with method=unimix"),
        (["seed=7"], {"method": "rmt"}, "seed=7: no cell of sweeps=.* that this study starts from"),
        (["study.mode=train"], {}, "base: cells of sweeps=.* are for study.mode: evaluate"),
        ([], {"method": "rmt"}, "memory.size is not a setting"),
    ],
)
def test_mistakes(tmp_path, other, arguments, where, message):
    with pytest.raises(ConfigError, match=message):
        reading(tmp_path, other, *arguments, **where)
