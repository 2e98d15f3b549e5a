"""W&B mirrors a run, and whatever happens to it, the run goes on."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from training.conftest import metrics
from wandb_file import no_account, records

from unimem.config import compose
from unimem.results.wandb_run import chosen_mode
from unimem.training.mirror import Mirror


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    no_account(tmp_path, monkeypatch)


def history(path: Path) -> list[dict[str, Any]]:
    lines = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            item = record.history.item
            lines.append({".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in item})
    return lines


def test_offline_run_holds_metrics_and_the_four_dimensions(runs):
    run = runs.start("name=a", "study=table", "logger=wandb", "logger.mode=offline")
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    written = history(path)
    assert [(line["step"], line["loss"]) for line in written] == [
        (line["step"], line["loss"]) for line in metrics(run)
    ]
    (first,) = [r.run for r in records(path) if r.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert (first.project, first.run_group, first.display_name) == ("unimem", "table", "a")
    assert config["memory.reading"] == "position" and config["memory.window"] == 12
    assert config["trainer"]["max_steps"] == 8
    assert first.run_id == (run / "wandb_id").read_text()


@pytest.mark.parametrize(
    ("setting", "environment", "netrc", "mode"),
    [
        ("auto", {}, "", "offline"),
        ("auto", {"WANDB_API_KEY": "k" * 40}, "", "online"),
        ("auto", {"WANDB_API_KEY": "k" * 40, "WANDB_MODE": "disabled"}, "", "disabled"),
        ("auto", {}, "machine api.wandb.ai login user password k", "online"),
        ("auto", {}, "machine elsewhere.example login user password k", "offline"),
        ("auto", {}, "this is no netrc", "offline"),
        ("offline", {"WANDB_API_KEY": "k" * 40}, "", "offline"),
    ],
)
def test_mode(tmp_path, monkeypatch, setting, environment, netrc, mode):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    assert chosen_mode(compose("logger=wandb", f"logger.mode={setting}").logger) == mode


def test_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    settings = compose("logger=wandb", "logger.mode=offline").logger
    with caplog.at_level(logging.WARNING):
        mirror = Mirror(settings, tmp_path / "missing", "study", {})
    assert "W&B does not start offline" in caplog.text
    mirror({"step": 1, "loss": 2.0})
    mirror.finish({"a": 1})


@pytest.mark.slow
def test_unreachable_server_is_a_warning_and_the_run_is_written_offline(runs, start):
    process = start(
        "name=a",
        "logger=wandb",
        "logger.init_timeout=2",
        WANDB_BASE_URL="http://127.0.0.1:9",
        WANDB_API_KEY="k" * 40,
    )
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert log.count("W&B does not start online") == 1
    run = runs.output / "runs" / "a"
    (path,) = run.glob("wandb/offline-run-*/*.wandb")
    assert len(history(path)) == 8
    assert (run / "result.json").exists()
