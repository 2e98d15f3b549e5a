"""Loggers show what a run records, under keys of their own; what happens to them, it goes on."""

import csv
import json
import logging
import os
import pty
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers.wandb_file import no_account, records
from helpers.wandb_server import wandb_server
from training.conftest import metrics

from unimem.config import ConfigError, compose
from unimem.runs.records import read_result
from unimem.runs.wandb_run import WandbRun, chosen_mode
from unimem.training.loggers import describe_wandb, eval_values, mirror_evaluation

KEY = "k" * 40


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    no_account(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)  # W&B's settings of the folder, too


def read(path: Path, kind: str) -> list[Any]:
    return [getattr(r, kind) for r in records(path) if r.WhichOneof("record_type") == kind]


def values(items) -> dict[str, Any]:
    return {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def history(path: Path) -> list[dict[str, Any]]:
    return [values(line.item) for line in read(path, "history")]


def leaves(config: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys as W&B shows them: those of what is nested, with dots."""
    found = []
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        found += leaves(value, f"{prefix}{key}.") if nested else [f"{prefix}{key}"]
    return found


def test_wandb_has_the_metrics_the_settings_and_what_was_found(runs):
    run = runs.start("name=a", "study=table", "logger=wandb", "logger.mode=offline")
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    trained, recorded = history(path), metrics(run)
    last = trained[-1]
    assert [(x["_step"], x["train/loss"]) for x in trained] == [
        (x["step"], x["loss"]) for x in recorded
    ]
    assert [x["train/lr"] for x in trained] == [x["learning_rate"] for x in recorded]
    assert {"train/grad_norm", "train/tokens_per_second"} < trained[0].keys()
    assert all(key.startswith(("train/", "_")) for key in trained[0])

    scores = read_result(run)["evaluation"]["scores"]
    found = {
        "eval/nll": scores["own"]["nll"],
        "eval/perplexity": scores["own"]["perplexity"],
        "eval/nll_off": scores["off"]["nll"],
        "eval/gain": pytest.approx(scores["off"]["nll"] - scores["own"]["nll"]),
    }
    assert {key: last[key] for key in found} == found and last["_step"] == 8
    summary: dict[str, Any] = {}
    for update in read(path, "summary"):
        summary |= values(update.update)
    assert {key: summary[key] for key in found} == found
    assert all(isinstance(x, int | float) for key, x in summary.items() if not key.startswith("_"))

    (first,) = read(path, "run")
    assert (first.project, first.run_group, first.job_type) == ("unimem", "table", "train")
    assert (first.display_name, first.run_id) == ("a", (run / "wandb_id").read_text())
    assert list(first.tags) == ["transformer_xl", "markov", "2x16"]


def test_settings_are_in_wandb_once(runs):
    run = runs.start("name=a", "logger=wandb", "logger.mode=offline", "logger.tags=[mine]")
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    (first,) = read(path, "run")
    config = values(first.config.update)
    names = leaves(config)
    assert len(set(names)) == len(names)
    assert not [a for a in names for b in names if b.startswith(f"{a}.")]
    assert config["memory"]["reading"] == "position" and config["memory"]["window"] == 12
    assert config["trainer"]["max_steps"] == 8
    result = read_result(run)
    assert (config["parameters"], config["commit"]) == (result["parameters"], result["commit"])
    assert list(first.tags) == ["transformer_xl", "markov", "2x16", "mine"]


def test_csv_has_the_same_keys_and_a_continued_run_all_of_them(runs, tmp_path):
    def table(run):
        with (run / "csv" / "metrics.csv").open() as file:
            return [{k: v for k, v in line.items() if v} for line in csv.DictReader(file)]

    whole = runs.start("name=a", "logger=csv")
    *trained, last = table(whole)
    assert [(int(x["step"]), float(x["train/loss"])) for x in trained] == [
        (x["step"], x["loss"]) for x in metrics(whole)
    ]
    assert float(last["eval/nll"]) == read_result(whole)["evaluation"]["scores"]["own"]["nll"]
    assert not (whole / "wandb").exists()

    runs.output = tmp_path / "copy"
    runs.copy_at(whole, 3)
    again = table(runs.start("name=a", "resume=true", "logger=csv"))
    assert [x["step"] for x in again] == [x["step"] for x in (*trained, last)]
    assert [x.get("train/loss") for x in again] == [x.get("train/loss") for x in (*trained, last)]


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_has_the_same_keys(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = runs.start("name=a", "logger=tensorboard")
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    losses = [(x.step, x.value) for x in events.Scalars("train/loss")]
    assert losses == [(x["step"], pytest.approx(x["loss"])) for x in metrics(run)]
    own = read_result(run)["evaluation"]["scores"]["own"]["nll"]
    assert events.Scalars("eval/nll")[0].value == pytest.approx(own)


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is there")
def test_tensorboard_that_is_missing_is_told_before_anything_runs():
    with pytest.raises(ConfigError, match=r"needs tensorboard: pip install '\.\[tensorboard\]'"):
        compose("logger=tensorboard")


@pytest.mark.parametrize(
    ("chosen", "mode", "table"),
    [
        ("none", "disabled", False),
        ("wandb", "auto", False),
        ("csv", "disabled", True),
        ("[wandb,csv]", "auto", True),
        ("[csv,wandb]", "auto", True),
    ],
)
def test_loggers_are_chosen_alone_or_as_a_list(chosen, mode, table):
    settings = compose(f"logger={chosen}").logger
    assert (settings.mode, settings.csv, settings.tensorboard) == (mode, table, False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("logger=[none,csv]", "none means no logger; leave it out, or write logger=none"),
        ("logger=[csv,mlflow]", "mlflow is not an option; choose from csv, none, tensorboard, w"),
        ("logger=mlflow", "mlflow is not an option; choose from csv, none, tensorboard, wandb"),
        ("memory.reading=[similarity,other]", "other is not an option; choose from all, assoc"),
        ("logger=[0,0]", "an option is a name"),
    ],
)
def test_what_is_no_logger_is_refused_in_a_sentence(given, said):
    with pytest.raises(ConfigError) as told:
        compose(given)
    assert said in str(told.value)


NETRC = "machine api.wandb.ai login user password k"


@pytest.mark.parametrize(
    ("setting", "environment", "netrc", "mode"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY}, "", "online"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "", "disabled"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "dryrun"}, "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "offline"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_DISABLED": "true"}, "", "disabled"),
        ("auto", {"WANDB_API_KEY": KEY, "WANDB_MODE": "nonsense"}, "", "online"),
        ("auto", {"WANDB_MODE": "online"}, "", "offline"),
        ("auto", {"WANDB_IDENTITY_TOKEN_FILE": "/token"}, "", "online"),
        ("auto", {}, NETRC, "online"),
        ("auto", {"WANDB_BASE_URL": "http://own.example:8080"}, NETRC, "offline"),
        ("auto", {}, "machine elsewhere.example login user password k", "offline"),
        ("auto", {}, "this is no netrc", "offline"),
        ("online", {}, "", "offline"),
        ("online", {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "", "online"),
        ("offline", {"WANDB_API_KEY": KEY}, "", "offline"),
    ],
)
def test_mode(tmp_path, monkeypatch, setting, environment, netrc, mode):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    assert chosen_mode(compose("logger=wandb", f"logger.mode={setting}").logger) == mode


@pytest.mark.parametrize("folder", ["wandb", "WANDB_CONFIG_DIR"])
def test_settings_files_of_wandb_are_obeyed(tmp_path, monkeypatch, folder):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "settings").write_text("[default]\nmode = offline\n")
    assert chosen_mode(compose("logger=wandb").logger) == "offline"


def test_the_headline_says_what_is_sent(monkeypatch):
    settings = compose("logger=wandb").logger
    assert "offline, files only" in str(describe_wandb(settings))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert "online, project mine; logger.mode=offline" in str(describe_wandb(settings))
    assert describe_wandb(compose("logger=none").logger) is None


def test_environment_of_wandb_fills_what_is_not_set(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_TAGS", "a,b")
    settings = compose("logger=wandb", "logger.mode=offline").logger
    run = WandbRun(settings, tmp_path, group="g", job_type="train", name="n", config={}, tags=["t"])
    assert run.finish({}).startswith(f"wandb sync {tmp_path}/wandb/offline-run-")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    (first,) = read(path, "run")
    assert (first.project, list(first.tags)) == ("mine", ["t", "a", "b"])


def test_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    settings = compose("logger=wandb", "logger.mode=offline").logger
    with caplog.at_level(logging.WARNING):
        run = WandbRun(settings, tmp_path / "missing", group="g", job_type="t", name="n", config={})
    assert "W&B does not start offline" in caplog.text
    run.log({"train/loss": 2.0}, step=1)
    assert run.finish({"a": 1}) is None


def test_an_evaluation_is_a_run_of_its_own_in_the_group(runs, tmp_path):
    trained = runs.start("name=a", "study=table")
    evaluation = read_result(trained)["evaluation"]
    folder = tmp_path / "eval-1"
    folder.mkdir()
    own = ("study=table", "logger=wandb", "logger.mode=offline")
    config = compose(*runs.overrides(*own))
    command = mirror_evaluation(config, {"seed": 0}, evaluation, folder, trained)
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert command == f"wandb sync {path.parent}"
    (first,) = read(path, "run")
    assert (first.run_group, first.job_type) == ("table", "eval")
    assert first.display_name == "a/eval-1" and "transformer_xl" in first.tags
    (line,) = history(path)
    assert {key: line[key] for key in line if key[0] != "_"} == eval_values(evaluation)
    unsent = compose(*runs.overrides("study=table"))
    assert mirror_evaluation(unsent, {}, evaluation, folder, trained) is None


def online(address: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY}


@pytest.mark.slow
def test_unreachable_server_is_a_warning_and_the_run_is_written_offline(runs, start):
    more = ("name=a", "logger=wandb", "logger.init_timeout=2")
    process = start(*more, **online("http://127.0.0.1:9"))
    out, log = process.communicate(timeout=120)
    assert process.returncode == 0
    assert log.count("W&B does not start online") == 1 and "wandb sync" in out
    run = runs.output / "runs" / "a"
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    assert len(history(path)) == 8
    assert (run / "result.json").exists()


@pytest.mark.slow
def test_server_that_falls_silent_costs_no_more_than_its_deadline(runs, start):
    more = ("name=a", "logger=wandb", "logger.finish_timeout=3")
    with wandb_server(then="silent") as address:
        process = start(*more, **online(address))
        deadline = time.monotonic() + 120
        while not (runs.output / "runs" / "a" / "result.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        begin = time.monotonic()
        out, log = process.communicate(timeout=60)
    assert process.returncode == 0 and time.monotonic() - begin < 15
    assert "did not take everything within logger.finish_timeout=3 s" in log
    assert "to send it: wandb sync" in out


@pytest.mark.slow
def test_signal_ends_a_run_whose_server_is_silent(runs, start):
    more = ("name=a", "logger=wandb", "logger.finish_timeout=3", "trainer.max_steps=100000")
    with wandb_server(then="silent") as address:
        process = start(*more, "trainer.checkpoint_every=100000", **online(address))
        path = runs.output / "runs" / "a" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not path.exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=20)
    assert process.returncode == 143 and "resume=true name=a continues the run" in out


@pytest.mark.slow
def test_signal_ends_a_run_that_waits_for_the_server(runs, start):
    more = ("name=a", "logger=wandb", "logger.init_timeout=300")
    with wandb_server(silent=True) as address:
        process = start(*more, **online(address))
        deadline = time.monotonic() + 120
        while not list(runs.output.glob("runs/a/wandb/run-*")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 143 and "Traceback" not in log


@pytest.mark.slow
def test_nobody_is_asked_for_a_key_on_a_terminal(runs):
    master, slave = pty.openpty()
    line = runs.overrides("name=a", "logger=wandb", "logger.mode=online", "trainer.max_steps=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "unimem.cli.train", *line],
        stdin=slave,
        stdout=subprocess.DEVNULL,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    said = b""
    try:
        while chunk := os.read(master, 4096):
            said += chunk
    except OSError:  # the terminal's other end is closed
        pass
    finally:
        os.close(master)
    assert process.wait(timeout=120) == 0
    assert b"finds no key" in said and b"Enter your choice" not in said
