import shutil

import pytest
from small_study import copy_of, small_study

from unimem.cli.study_report import main


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def test_writes_a_page_and_says_where(output, capsys):
    main(["small", "--output", str(output)])
    page = output / "small" / "report.html"
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text().startswith("<!doctype html>")


def test_a_study_that_was_not_run_is_told_with_those_that_were(output):
    with pytest.raises(SystemExit, match=r"nope/study.json does not exist; .*small\)"):
        main(["nope", "--output", str(output)])


def test_without_a_finished_cell_there_is_no_report(output, tmp_path):
    copied = copy_of(output, tmp_path)
    shutil.rmtree(copied / "cells")
    with pytest.raises(SystemExit, match="no cell of small is finished; run it: unimem-sweep"):
        main(["small", "--output", str(copied)])
