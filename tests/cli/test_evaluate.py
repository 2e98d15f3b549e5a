import json
import subprocess
import sys

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from sampled import each

from unimem.cli.evaluate import EvalSettings, make_folder, recompose, run, table
from unimem.config import ConfigError, compose, resolve
from unimem.evaluation.tokens import TokenTable
from unimem.paths import config_root

OVERRIDES = [
    "method=unimix",
    "memory.injection.layers=[1,2]",
    "memory.segment_length=16",
    "memory.num_soft_tokens=2",
    "model=tiny",
    "data=markov",
    "data.length=64",
    "data.validation_documents=4",
    "trainer.max_steps=2",
    "logger=none",
    "name=run",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run, made by the command itself."""
    output = tmp_path_factory.mktemp("outputs")
    command = [sys.executable, "-m", "unimem.cli.train", *OVERRIDES, f"output={output}"]
    subprocess.run(command, check=True, capture_output=True)
    return output / "runs" / "run"


def evaluate(*overrides):
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        node = hydra_compose("eval", list(overrides))
    run(node)


def settings(**values):
    given = {"run": "x", "documents": None, "controls": True, "overrides": [], "output": None}
    return EvalSettings(**(given | values))


def test_finds_again_what_training_found(trained, capsys):
    before = json.loads((trained / "result.json").read_text())["evaluation"]
    evaluate(f"run={trained}")
    out = capsys.readouterr().out
    assert f"results: {trained / 'eval-1'}" in out and "own-off" in out
    after = json.loads((trained / "eval-1" / "result.json").read_text())["evaluation"]
    for record in (before, after):
        for score in record["scores"].values():
            del score["seconds"], score["tokens_per_second"]
    assert after == before
    assert TokenTable.load(trained / "eval-1").columns.keys() >= {"own", "off", "other"}


def test_reads_with_other_budgets(trained):
    evaluate(
        f"run={trained}",
        "documents=2",
        "controls=false",
        "overrides=['memory.size=16','memory.topk=1','evaluation.max_tokens=40']",
        f"output={trained / 'small'}",
    )
    record = json.loads((trained / "small" / "result.json").read_text())
    assert record["evaluation"]["tokens"] == 2 * 39
    assert set(record["evaluation"]["scores"]) == {"own"}
    memory = record["config"]["memory"]
    assert (memory["size"], memory["management"]) == (16, {"fifo": {"size": 16}})
    assert memory["reading"]["similarity"]["topk"] == memory["topk"] == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run={nowhere}"], r"nowhere does not exist; name the folder"),
        ([], r"run= is missing; name the folder of a finished run"),
        (["run={run}", "documents=x"], r"documents: Input should be a valid integer \(got 'x'\)"),
        (
            ["run={run}", "overrides=['memory.size=-4']"],
            r"memory.size: .* than 0 \(got -4\)",
        ),
        (["run={run}", "overrides=['memory.tpok=4']"], r"memory.tpok=4\]: .* memory.topk"),
        (["run={run}", "overrides=['memory.reading=all']"], r"can only be read with another"),
        (["run={run}", "overrides=['memory.topk']"], r"as name=value"),
        (["run={run}", "overrides=['memory.num_soft_tokens=3']"], r"attach the memory that was"),
        (["run={run}", "output={run}"], r"run exists; name a new folder"),
    ],
)
def test_mistakes_are_told_in_words(trained, tmp_path, overrides, message):
    places = {"run": trained, "nowhere": tmp_path / "nowhere"}
    with pytest.raises(ConfigError, match=message):
        evaluate(*(override.format(**places) for override in overrides))
    assert not (tmp_path / "nowhere").exists()


def test_other_documents_are_refused(trained, tmp_path):
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    recorded = json.loads((trained / "result.json").read_text())
    recorded["config"]["data"]["seed"] = 1
    (run_folder / "result.json").write_text(json.dumps(recorded))
    with pytest.raises(ConfigError, match="data=markov is not what the run was trained on"):
        evaluate(f"run={run_folder}")
    assert not (run_folder / "eval-1").exists()


METHODS = sorted(file.stem for file in (config_root() / "conf/method").iterdir())


@pytest.mark.parametrize("method", each(8, METHODS))
def test_every_method_is_composed_again_from_its_record(method):
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        recorded = resolve(hydra_compose("train", [f"method={method}"]))
    recorded = yaml.safe_load(yaml.safe_dump(recorded))
    config, values = recompose(recorded, settings())
    assert config == compose(f"method={method}") and values == recorded


def test_folders_are_new(tmp_path):
    assert make_folder(tmp_path, None) == tmp_path / "eval-1"
    assert make_folder(tmp_path, None) == tmp_path / "eval-2"


def test_table_shows_skips_and_warnings():
    evaluation = {
        "documents": 1,
        "tokens": 9,
        "protocol": "segments",
        "scores": {"own": {"nll": 1.0, "interval": [None, None], "perplexity": 2.718}},
        "bounds": {},
        "comparisons": {},
        "skipped": {"other": "needs two"},
        "warnings": ["below"],
    }
    lines = table(evaluation)
    assert "one document" in lines[2]
    assert lines[3:] == ["not read: other: needs two", "WARNING: below"]
