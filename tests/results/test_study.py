from pathlib import Path

import pytest
from small_study import LEFT_OUT, copy_of, small_study

from unimem.results.study import CellRecord, StudyRecord, read_study


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def labels(*cells: str) -> list[str]:
    """Labels of the groups of a study whose cells have these overrides."""
    records = [
        CellRecord(
            label=cell,
            overrides=dict(line.split("=") for line in cell.split()),
            folder=Path(cell),
            run=None,
        )
        for cell in cells
    ]
    study = StudyRecord(name="s", arguments=(), fields={}, cells=tuple(records))
    return [group.label for group in study.groups()]


def test_groups_are_named_by_what_varies_and_pool_seeds():
    assert labels("a=1 b=2 seed=0", "a=1 b=3 seed=0", "a=1 b=2 seed=1") == ["b=2", "b=3"]
    assert labels("a=1 seed=0", "a=1 seed=1") == ["the run"]


def test_a_setting_of_some_cells_is_named_where_names_need_it():
    assert labels("m=x", "a=1 c=5", "a=2 c=5") == ["m=x", "a=1", "a=2"]
    assert labels("a=1", "a=1 c=5", "a=2") == ["a=1", "a=1 c=5", "a=2"]


def test_cells_are_read_with_what_became_of_them(output):
    study = read_study(output, "small")
    assert [cell.label for cell in study.unfinished] == [LEFT_OUT]
    assert study.unfinished[0].trouble() == ["not begun"]
    assert study.command.startswith("unimem-sweep sweeps=")
    assert study.fields["claim"] == "The deeper layer is the better one."


def test_trouble_has_the_end_of_the_log(output, tmp_path):
    copied = copy_of(output, tmp_path)
    cell = read_study(copied, "small").cells[0]
    (cell.folder / "result.json").unlink()
    cell.folder.with_name(f"{cell.folder.name}.log").write_text("a\nb\nMemoryError\n")
    (cell,) = (c for c in read_study(copied, "small").unfinished if c.folder == cell.folder)
    assert cell.trouble(2) == ["unfinished: step 2 of 2", "b", "MemoryError"]
