import csv
import io
import json
import subprocess
import sys

import pyarrow.parquet
import pytest
from helpers.small_study import copy_of, small_study

from unimem.cli.results import main
from unimem.runs.records import read_result


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def table(capsys, *arguments):
    main([*map(str, arguments), "--format", "csv"])
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_finished_run_has_a_row_with_its_numbers(output, capsys):
    rows = table(capsys, output)
    assert len(rows) == 6
    (alone,) = (row for row in rows if row["name"] == "alone")
    result = read_result(output / "runs" / "alone")
    own = result["evaluation"]["scores"]["own"]
    assert float(alone["nll"]) == own["nll"]
    assert float(alone["perplexity_low"]) < own["perplexity"] < float(alone["perplexity_high"])
    assert int(alone["tokens_seen"]) == result["tokens_seen"]
    assert {row["study"] for row in rows} == {"runs", "small"}


def test_where_takes_any_setting_and_sort_orders(output, capsys):
    conditions = ["injection_layer=1", "memory.size=16", "trainer.max_steps=2"]
    assert len(table(capsys, output, "--where", *conditions)) == 1
    assert len(table(capsys, output, "--where", "injection_layer=null")) == 3
    rows = table(capsys, output, "--where", "study=small", "--sort", "nll", "--columns", "nll,seed")
    losses = [float(row["nll"]) for row in rows]
    assert losses == sorted(losses) and list(rows[0]) == ["nll", "seed"]


def test_unfinished_runs_are_listed_when_asked_for(output, capsys, tmp_path):
    run = tmp_path / "runs" / "broken"
    run.mkdir(parents=True)
    config = (output / "runs" / "alone" / "config.yaml").read_text()
    (run / "config.yaml").write_text(config)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    (row,) = table(capsys, tmp_path, "--all")
    assert row["status"] == "unfinished: step 1 of 2" and row["memory.injection"] == "none"
    with pytest.raises(SystemExit, match="no finished run; --all lists the others too"):
        main([str(tmp_path)])


def test_sorting_takes_a_minus_and_nothing_found_is_told(output, capsys):
    rows = table(capsys, output, "--where", "study=small", "--sort", "-nll", "--columns", "nll")
    losses = [float(row["nll"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    main([str(output), "--where", "memory.size=4,8"])
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "none of 6 runs: memory.size=4,8\n  memory.size is 16, -\n"


def test_columns_can_be_listed_and_shown_all(output, capsys):
    main([str(output), "--list-columns"])
    names = capsys.readouterr().out.split()
    assert names[:2] == ["name", "kind"]
    assert {"trainer.max_steps", "evaluation.scores.own.nll"} < {*names}
    assert list(table(capsys, output, "--columns", "all")[0]) == names


def test_a_terminal_gets_no_more_than_it_is_wide(output, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    main([str(output)])
    told = capsys.readouterr()
    lines = told.out.splitlines()
    assert max(map(len, lines)) <= 80 and "nll" in lines[0] and "peak_memory_bytes" not in lines[0]
    assert "peak_memory_bytes" in told.err and "left out, the terminal has 80 columns" in told.err


def test_damaged_records_are_named_beside_the_table(output, capsys, tmp_path):
    copied = copy_of(output, tmp_path)
    (copied / "runs" / "alone" / "result.json").write_text('{"status": "fin')
    main([str(copied)])
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 6
    assert told.err.startswith("1 record left out:\n") and "alone/result.json" in told.err


def test_parquet_keeps_types(output, tmp_path):
    file = tmp_path / "runs.parquet"
    main([str(output), "--format", "parquet", "--out", str(file), "--columns", "name,seed,nll"])
    rows = pyarrow.parquet.read_table(file).to_pylist()
    assert len(rows) == 6 and {type(row["seed"]) for row in rows} == {int}
    assert {type(row["nll"]) for row in rows} == {float}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--where", "memory.injecton=none"], "memory.injecton; did you mean memory.injection"),
        (["--where", "seed"], "where seed: write column=value"),
        (["--columns", "nll,lose"], "no run has a column lose; .*--list-columns names them all"),
        (["--where", "seed<few"], "where seed<few: 'few' is not a number"),
        (["--out", "nodir/x.csv"], "--out nodir/x.csv: nodir is not a folder; make it first"),
        (["--format", "parquet"], "--format parquet needs --out FILE"),
    ],
)
def test_mistakes_are_told_in_a_line(output, arguments, message):
    with pytest.raises(SystemExit, match=message) as caught:
        main([str(output), *arguments])
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nowhere is not a folder; name one"):
        main([str(tmp_path / "nowhere")])


def test_starts_without_torch():
    code = "import sys, unimem.cli.results, unimem.cli.study_report; print('torch' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_a_foreign_record_moves_no_cursor(output, capsys, tmp_path):
    copied = copy_of(output, tmp_path)
    path = next(copied.glob("cells/*/result.json"))
    result = read_result(path.parent)
    result["config"]["data"]["kind"] = "\x1b[2J=1+1"
    path.write_text(json.dumps(result))
    (tmp_path / "bad\x1b]0;x").mkdir()
    (tmp_path / "bad\x1b]0;x" / "result.json").write_text("{")
    for form in ("table", "csv", "md", "latex"):
        main([str(tmp_path), "--format", form])
        told = capsys.readouterr()
        assert "\x1b" not in told.out + told.err and "bad\\x1b]0;x" in told.err
        assert "x1b[2J=1+1" in told.out.replace("\\textbackslash{}", "")
