import json
import shutil

import pytest
from helpers.made_study import Made, make_study
from helpers.small_study import copy_of, small_study
from helpers.wandb_file import no_account

from unimem.cli.study_report import logger_settings, main


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def test_writes_a_page_and_says_where(output, capsys):
    main(["small", "--output", str(output)])
    page = output / "small" / "report.html"
    title, head, *lines, last = capsys.readouterr().out.splitlines()
    assert title.startswith("small on markov") and head.split()[:3] == ["setting", "nats", "per"]
    assert sorted(line.split()[0] for line in lines[:3]) == [
        "injection_layer=0", "injection_layer=1", "vanilla",
    ]  # fmt: skip
    assert last == str(page)
    assert page.read_text().startswith("<!doctype html>")


def test_a_study_that_was_not_run_is_told_with_those_that_were(output):
    with pytest.raises(SystemExit, match=r"nope/study.json does not exist; .*small\)"):
        main(["nope", "--output", str(output)])


def test_without_a_finished_cell_there_is_no_report(output, tmp_path):
    copied = copy_of(output, tmp_path)
    shutil.rmtree(copied / "cells")
    with pytest.raises(SystemExit, match="no cell of small is finished; run it: unimem-sweep"):
        main(["small", "--output", str(copied)])


def test_a_copy_is_made_where_it_is_asked_for(tmp_path, capsys):
    make_study(tmp_path, Made(overrides="method=vanilla"))
    main(["made", "--output", str(tmp_path), "--copy-to", str(tmp_path / "docs" / "made")])
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path}/docs/made/report.html"
    assert (tmp_path / "docs" / "made" / "verdicts.json").is_file()


@pytest.mark.parametrize(
    ("modes", "asked", "mode"),
    [
        (["disabled", "disabled"], None, "disabled"),
        (["disabled", "offline"], None, "auto"),
        (["disabled"], "offline", "offline"),
        (["online"], "disabled", "disabled"),
    ],
)
def test_a_report_is_mirrored_if_runs_were_or_if_asked(tmp_path, modes, asked, mode):
    cells = [
        Made(overrides=f"memory.size={i}", more={"config": {"logger": settings(given, i)}})
        for i, given in enumerate(modes)
    ]
    found = logger_settings(make_study(tmp_path, *cells), asked)
    assert found.mode == mode
    used = [i for i, given in enumerate(modes) if given != "disabled"] or [0]
    assert found.project == f"project-{used[0]}"


def settings(mode, i):
    return {
        "mode": mode, "project": f"project-{i}", "entity": None, "group": None, "init_timeout": 5
    }  # fmt: skip


def test_a_mirrored_report_lies_beside_the_study(tmp_path, monkeypatch):
    no_account(tmp_path, monkeypatch)
    make_study(tmp_path, Made(overrides="method=vanilla"))
    main(["made", "--output", str(tmp_path), "--wandb", "offline"])
    assert list((tmp_path / "made").glob("wandb/offline-run-*/*.wandb"))
    verdicts = json.loads((tmp_path / "made" / "verdicts.json").read_text())
    assert verdicts["verdicts"] == []
