"""The runs of a folder as a DataFrame."""

import subprocess
import sys

import pytest
from helpers.small_study import small_study

import unimem
from unimem.results.collect import collect


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def test_every_finished_run_is_a_row_with_settings_and_results(output):
    frame, rows = unimem.results.frame(output), collect(output).rows
    assert len(frame) == len(rows) > 3 and list(frame.columns[:3]) == ["name", "kind", "study"]
    assert frame.nll.tolist() == [row["nll"] for row in rows]
    by_size = frame.groupby("memory.size").nll.mean()
    assert by_size[16] == pytest.approx(frame.nll[frame["memory.size"] == 16].mean())


def test_what_is_no_folder_is_told(tmp_path):
    with pytest.raises(ValueError, match="is not a folder; name one that runs were written to"):
        unimem.results.frame(tmp_path / "nothing")


def test_it_needs_no_torch():
    code = "import sys, unimem; unimem.results.frame; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
