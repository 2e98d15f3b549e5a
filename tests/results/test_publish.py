"""The report in W&B, read back from the file that it writes offline."""

import json
import logging

import pytest
from helpers.made_study import Made, make_study
from helpers.wandb_file import no_account, records

from unimem.results.publish import as_wandb, publish
from unimem.results.render.blocks import Measured, Table
from unimem.results.report import write_study_report
from unimem.settings import LoggerSettings


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    no_account(tmp_path, monkeypatch)


def connection(mode):
    return LoggerSettings(mode=mode, project="p", entity=None, group="g", init_timeout=5)


def items(update):
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in update}


def report_in(tmp_path):
    check = {"best": {"method": "rmt"}}
    cells = Made(overrides="method=vanilla"), Made(overrides="method=rmt", nll=1.5)
    study = make_study(tmp_path, *cells, report={"checks": [check]})
    return write_study_report(study, tmp_path / "made")


def test_tables_figures_and_verdicts_are_in_the_offline_file(tmp_path):
    report = report_in(tmp_path)
    publish(report, connection("offline"))
    publish(report, connection("offline"))
    files = sorted((tmp_path / "made").glob("wandb/offline-run-*/*.wandb"))
    assert len({file.name for file in files}) == 1  # a second report goes on in the same run
    found = list(records(files[0]))
    (run,) = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    assert (run.project, run.run_group, run.job_type) == ("p", "made", "report")
    assert run.display_name == "made"
    assert run.run_id == (tmp_path / "made" / "wandb_id").read_text()

    logged, summary = {}, {}
    for record in found:
        kind = record.WhichOneof("record_type")
        if kind == "history":
            logged |= items(record.history.item)
        elif kind == "summary":
            summary |= items(record.summary.update)
    kinds = {key.removesuffix("._type"): x for key, x in logged.items() if key.endswith("._type")}
    tables = {key for key, kind in kinds.items() if kind == "table-file"}
    figures = {key for key, kind in kinds.items() if kind == "image-file"}
    assert tables == {f"tables/{table.name}" for table in report.tables} | {"tables/verdicts"}
    assert figures == {f"figures/{picture.path.stem}" for picture in report.pictures}
    assert "tables/losses" in tables and "figures/position" in figures
    for key in tables | figures:
        assert (files[0].parent / "files" / logged[f"{key}.path"]).is_file()
    assert {key: summary[key] for key in report.headline()} == report.headline()
    assert summary["verdict/markov/rmt has a lower loss than every other setting."] == "held"


def test_intervals_are_columns_and_numbers_are_numbers():
    rows = [["a", Measured(1.0, 0.5, 1.5, ".1f"), "1,024", "3 of 3"], ["b", "-", "-", "x"]]
    table = as_wandb(Table(name="t", head=["s", "nll", "size", "seeds"], rows=rows))
    assert table.columns == ["s", "nll", "nll, low", "nll, high", "size", "seeds"]
    assert table.data == [
        ["a", 1.0, 0.5, 1.5, 1024.0, "3 of 3"],
        ["b", None, None, None, None, "x"],
    ]


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    report = report_in(tmp_path)
    (tmp_path / "made" / "wandb_id").mkdir()
    with caplog.at_level(logging.WARNING):
        publish(report, connection("offline"))
    assert "W&B does not start offline" in caplog.text
