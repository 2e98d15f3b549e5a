import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from helpers.sampled import each
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

from unimem.cli import evaluate as command
from unimem.cli.evaluate import new_folder, run, table
from unimem.cli.reading import may_share_documents, recompose
from unimem.config import ConfigError, compose, compose_node, resolve
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
    """Do what `unimem-eval` with these arguments does."""
    own, others = command._split(overrides)
    run(compose_node("eval", own), others)


def record_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_finds_again_what_training_found(trained, capsys, monkeypatch):
    before = json.loads((trained / "result.json").read_text())["evaluation"]
    monkeypatch.setattr(sys, "argv", ["unimem-eval", f"run={trained}"])
    command.main()
    out = capsys.readouterr().out
    assert f"results: {trained / 'eval-1'}" in out
    for words in (
        "corpus: markov: ",
        "own memory",
        "memory off",
        "another document's memory",
        "best possible, without memory",
        "best possible, with unlimited memory",
        "own memory - best possible, without memory",
    ):
        assert f"\n{words} " in f"\n{out}" or words in out.splitlines()[0]
    after = json.loads((trained / "eval-1" / "result.json").read_text())["evaluation"]
    for record in (before, after):
        for score in record["scores"].values():
            del score["seconds"], score["tokens_per_second"]
    assert after == before
    assert TokenTable.load(trained / "eval-1").columns.keys() >= {"own", "off", "other"}


SMALLER = ["memory.size=1.6e1", "memory.topk=1", "evaluation.max_tokens=40", "documents=2"]
QUOTED = ["overrides=['memory.size=16','memory.topk=1','evaluation.max_tokens=40']", "documents=2"]


@pytest.mark.parametrize("overrides", [SMALLER, QUOTED])
def test_reads_with_other_budgets(trained, tmp_path, overrides):
    output = tmp_path / "new" / "small"
    evaluate(f"run={trained}", "controls=false", *overrides, f"output={output}")
    record = record_of(output)
    assert record["evaluation"]["tokens"] == 2 * 39
    assert set(record["evaluation"]["scores"]) == {"own"}
    memory = record["config"]["memory"]
    assert (memory["size"], memory["management"]) == (16, {"fifo": {}})
    assert record["memory"]["memory.size"] == 16
    assert memory["topk"] == record["memory"]["memory.topk"] == 1
    assert record["run"] == str(trained) and record["method"] == "unimix"


@pytest.mark.slow
def test_a_sweep_over_budgets_finds_the_same(trained, tmp_path):
    """The weights of a base are evaluated with the same numbers by either command."""
    evaluate(f"run={trained}", "memory.topk=1", "controls=false", f"output={tmp_path / 'one'}")
    command = [sys.executable, "-m", "unimem.cli.sweep", "study.mode=evaluate", f"base={trained}",
               "memory.topk=1", "evaluation.controls=false", f"output={tmp_path}"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    (cell,) = (tmp_path / "cells").glob("*/result.json")
    scores = [record_of(f)["evaluation"]["scores"]["own"] for f in (tmp_path / "one", cell.parent)]
    assert scores[0]["nll"] == scores[1]["nll"]


def test_evaluates_other_documents(trained, tmp_path, capsys):
    evaluate(f"run={trained}", "data.length=128", "data.seed=1", f"output={tmp_path / 'longer'}")
    record = record_of(tmp_path / "longer")
    assert record["evaluation"]["tokens"] == 4 * 127
    assert record["config"]["data"]["length"] == 128
    assert record["corpus"]["digest"] != record_of(trained)["corpus"]["digest"]
    assert record["corpus"]["trained_on"] == record_of(trained)["corpus"]["digest"]
    assert "4 documents of 512 tokens held out" in capsys.readouterr().out.splitlines()[0]


@pytest.fixture(scope="module")
def trained_on_text(tmp_path_factory):
    """The folder of a finished run on files of text, and another folder of text."""
    root = tmp_path_factory.mktemp("text")
    for name, words in (("here", "the cat sat on the mat "), ("there", "a dog ran to the tree ")):
        (root / name).mkdir()
        for i in range(20):
            (root / name / f"{i}.txt").write_text(f"{i} {words}" * (i + 3))
    small = [x for x in OVERRIDES if not x.startswith("data")]
    command = [sys.executable, "-m", "unimem.cli.train", *small, "data=text", "data.vocab_size=300",
               f"data.path={root / 'here'}", f"data.cache={root}", f"output={root}"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return root / "runs" / "run", root / "there"


@pytest.mark.slow
def test_other_text_is_encoded_with_the_tokenizer_of_the_run(trained_on_text, trained, tmp_path):
    run_folder, there = trained_on_text
    other = ["data=text", f"data.path={there}", f"data.cache={tmp_path}", "data.held_out=0.5"]
    evaluate(f"run={run_folder}", *other, f"output={tmp_path / 'other'}")
    before, record = record_of(run_folder), record_of(tmp_path / "other")
    assert record["corpus"]["vocabulary"] == before["corpus"]["vocabulary"]
    assert (
        record["corpus"]["digest"] != record["corpus"]["trained_on"] == before["corpus"]["digest"]
    )
    assert record["config"]["data"]["path"] == str(there)
    assert record["config"]["data"]["tokenizer"] == str(run_folder / "model")
    assert record["evaluation"]["bytes"] > 0
    with pytest.raises(ConfigError, match="trained with tokenizer .*, but data=markov has"):
        evaluate(f"run={run_folder}", "data=markov")
    with pytest.raises(ConfigError, match="trained with .*markov of 8.*, but data=markov has"):
        evaluate(f"run={trained}", "data.states=9")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run={nowhere}"], r"nowhere does not exist; name the folder"),
        (["run={run}/model"], r"model is a part of a run; name the run's folder, .*run$"),
        ([], r"run= is missing; name the folder of a finished run"),
        (["run={run}", "documents=x"], r"documents: Input should be a valid integer \(got 'x'\)"),
        (["run={run}", "memory.size=-4"], r"memory.size: .* than 0 \(got -4\)"),
        (["run={run}", "overrides=['memory.size=-4']"], r"memory.size: .* than 0 \(got -4\)"),
        (["run={run}", "memory.tpok=4"], r"no such setting; did you mean memory.topk or"),
        (["run={run}", "memory.topk=4,8"], r"unimem-sweep study.mode=evaluate base=.* memory.topk"),
        (["run={run}", "model.num_layers=3"], r"model.num_layers is part of what the weights were"),
        (["run={run}", "trainer.batch_size=3"], r"is part of what the weights were trained with"),
        (
            ["run={run}", "injection_layer=1"],
            r"can change data, .*unimem-sweep study.mode=evaluate",
        ),
        (
            ["run={run}", "memory.reading=all"],
            r"unimem-sweep study.mode=evaluate base=.*reading=all",
        ),
        (["run={run}", "trainer=default"], r"is part of what the weights were trained with"),
        (["run={run}", "nothing.at.all=3"], r"is no setting of this run"),
        (["run={run}", "data.lenth=3"], r"did you mean data.length or"),
        (["run={run}", "data=nope"], r"data=nope is not an option; choose from"),
        (["run={run}", "+data.x=3"], r"write name=value"),
        (["run={run}", "documents=2", "evaluation.documents=3"], r"are one setting: give one"),
        (["run={run}", "data.tokenizer=bpe"], r"with its own tokenizer"),
        (["run={run}", "data=stdlib"], r"data=stdlib is text, but .*model holds no tokenizer"),
        (["run={run}", "data=text"], r"give data.path="),
        (["run={run}", "memory.num_soft_tokens=3"], r"attach the memory that was"),
        (["run={run}", "output={run}"], r"run exists; name a new folder"),
    ],
)
def test_mistakes_are_told_in_words(trained, tmp_path, overrides, message):
    places = {"run": trained, "nowhere": tmp_path / "nowhere"}
    before = sorted(trained.rglob("*"))
    with pytest.raises(ConfigError, match=message):
        evaluate(*(override.format(**places) for override in overrides))
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize("given", ["overrides=memory.topk=8", "overrides=[memory.topk=8,seed=1]"])
def test_overrides_without_inner_quotes_are_shown_as_they_are_written(given):
    with pytest.raises(SystemExit, match="an argument of its own: memory.topk=8"):
        command._split(["run=x", given])


def copied(trained, tmp_path, **changes):
    """Copy a run without its evaluations, with other entries of its result.json."""
    folder = tmp_path / "copy"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("eval-*", "checkpoints"))
    record = record_of(trained) | changes
    unsealed = {k: v for k, v in record.items() if k not in ("files", "check")}
    (folder / "result.json").write_text(json.dumps(unsealed))
    return folder


TEXT = {"kind": "text", "path": "/a/corpus", "held_out": 0.1}
HUB = {"kind": "hf", "repository": "org/data", "path": None, "held_out": 0.1, "split": "train"}


@pytest.mark.parametrize(
    ("trained_on", "others", "share"),
    [
        (TEXT, {}, False),
        (TEXT, {"held_out": 0.5}, True),
        (TEXT, {"path": ["/a/corpus/part", "/b"]}, True),
        (TEXT, {"path": "/a"}, True),
        (TEXT, {"path": "/a/corpus2", "held_out": 0.5}, False),
        (TEXT, {"kind": "pg19"}, False),
        (HUB, {"split": "test"}, True),
        (HUB, {"repository": "org/other", "split": "test"}, False),
        ({"kind": "pg19", "validation_split": "validation"}, {"validation_split": "test"}, False),
        ({"kind": "stdlib", "held_out": 0.1}, {"held_out": 0.2}, True),
    ],
)
def test_documents_that_a_run_was_trained_on_may_not_be_held_out_unsaid(trained_on, others, share):
    assert may_share_documents(trained_on, trained_on | others) is share


@pytest.mark.parametrize("name", ["model.safetensors", "memory.safetensors"])
@pytest.mark.parametrize("left", [0, 100, None])
def test_damaged_weights_are_named(trained, tmp_path, name, left):
    folder = copied(trained, tmp_path)
    file = folder / "model" / name
    content = file.read_bytes()
    file.unlink() if left is None else file.write_bytes(content[:left])
    with pytest.raises(ConfigError, match=rf"copy/model.* cannot be loaded|{name}"):
        evaluate(f"run={folder}")
    assert not list(folder.glob("eval-*"))


def test_weights_of_another_shape_than_their_config_are_refused(trained, tmp_path):
    folder = copied(trained, tmp_path)
    config = json.loads((folder / "model/config.json").read_text())
    config["num_hidden_layers"] += 1
    (folder / "model/config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"its weights lack model\.layers\.4.* and 6 more"):
        evaluate(f"run={folder}")


def test_the_record_of_an_evaluation_is_no_run(trained, tmp_path):
    evaluate(f"run={trained}", "controls=false", "documents=1", f"output={tmp_path / 'e'}")
    with pytest.raises(
        ConfigError, match=f"record of an evaluation; name the run itself, {trained}"
    ):
        evaluate(f"run={tmp_path / 'e'}")


def test_no_variable_of_the_environment_is_put_into_a_record(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "canary")
    config = record_of(trained)["config"]
    config["method"]["note"] = "${oc.env:SECRET}"
    folder = copied(trained, tmp_path, config=config)
    evaluate(f"run={folder}", "controls=false", "documents=1")
    text = (folder / "eval-1" / "result.json").read_text()
    assert "canary" not in text and "${oc.env:SECRET}" in text


def test_a_record_that_lacks_settings_is_no_traceback(trained, tmp_path):
    config = record_of(trained)["config"]
    del config["memory"]
    with pytest.raises(ConfigError, match="copy/result.json: its config cannot be read"):
        evaluate(f"run={copied(trained, tmp_path, config=config)}")


def test_a_run_with_options_of_ones_own_names_their_folder(trained, tmp_path):
    config = record_of(trained)["config"]
    config["memory"]["reading"] = {"mine": {}}
    folder = copied(trained, tmp_path, config=config, config_dir="/home/me/my_conf")
    with pytest.raises(ConfigError, match="started with --config-dir /home/me/my_conf: name that"):
        evaluate(f"run={folder}")


@pytest.mark.parametrize(
    ("override", "precision", "weights"),
    [
        (None, "bf16-mixed", "float32"),
        ("trainer.precision=32-true", "32-true", "float32"),
        ("trainer.precision=bf16-true", "bf16-true", "bfloat16"),
    ],
)
def test_reads_in_the_precision_of_the_run_unless_another_is_asked_for(
    trained, tmp_path, override, precision, weights
):
    """Wherever the run was: `auto` was bf16-mixed on its GPU."""
    assert record_of(trained)["config"]["trainer"]["precision"] == "auto"
    folder = copied(trained, tmp_path, precision="bf16-mixed")
    more = [] if override is None else [override]
    evaluate(f"run={folder}", "controls=false", f"output={tmp_path / 'out'}", *more)
    found = json.loads((tmp_path / "out" / "result.json").read_text())["evaluation"]
    assert (found["precision"], found["weights_dtype"]) == (precision, weights)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(trained, tmp_path):
    """Ctrl-C while documents are evaluated: a line, status 130, and no folder."""
    folder = copied(trained, tmp_path)
    command = [sys.executable, "-m", "unimem.cli.evaluate", f"run={folder}",
               "data.length=1000000"]  # fmt: skip
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        while not list(folder.glob("eval-*")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; nothing is recorded" in error
    assert "Traceback" not in error and not list(folder.glob("eval-*"))


def test_documents_that_changed_unasked_are_refused(trained, tmp_path):
    config = record_of(trained)["config"]
    config["data"]["seed"] = 1
    folder = copied(trained, tmp_path, config=config)
    with pytest.raises(ConfigError, match="data=markov is not what the run was trained on"):
        evaluate(f"run={folder}")
    assert not list(folder.glob("eval-*"))


METHODS = sorted(file.stem for file in (config_root() / "conf/method").iterdir())


@pytest.mark.parametrize("method", each(8, METHODS))
def test_every_method_is_composed_again_from_its_record(method):
    with initialize_config_dir(str(config_root() / "conf"), version_base="1.3"):
        recorded = resolve(hydra_compose("train", [f"method={method}"]))
    recorded = yaml.safe_load(yaml.safe_dump(recorded))
    config = recompose(recorded, [])
    assert config == compose(f"method={method}") and config.record() == recorded


def test_folders_are_new_and_go_when_the_work_fails(tmp_path):
    with new_folder(tmp_path, None) as first, new_folder(tmp_path, None) as second:
        assert (first, second) == (tmp_path / "eval-1", tmp_path / "eval-2")
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path, None) as third:
        (third / "documents.npz").touch()
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eval-1", "eval-2"]


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
    assert lines[3:] == ["left out: another document's memory: needs two", "WARNING: below"]
