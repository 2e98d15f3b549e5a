import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.small_study import LEFT_OUT, copy_of, small_study

from unimem.results.study import CellRecord, StudyRecord, read_study


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return small_study(tmp_path_factory)


def labels(*cells: str) -> list[str]:
    """Labels of the groups of a study whose cells have these overrides."""
    records = [
        CellRecord(
            label=cell,
            overrides=dict(line.split("=") for line in cell.split() if "seed" not in line),
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


def test_a_method_is_enough_where_it_tells_all_apart():
    cells = ("method=vanilla", "method=a memory.size=64", "method=b memory.size=512 memory.topk=4")
    assert labels(*cells) == ["vanilla", "a", "b"]
    assert labels(*cells, "method=b memory.size=64 memory.topk=4") == [
        "vanilla",
        "a size=64",
        "b size=512",
        "b size=64",
    ]


def test_every_setting_is_told_by_what_it_has():
    layers = [f"method=custom injection_layer={i}" for i in range(3)]
    upper = "method=custom memory.injection=layers memory.injection.layers=[1,2]"
    assert labels("method=vanilla", *layers, upper) == [
        "vanilla",
        "injection_layer=0",
        "injection_layer=1",
        "injection_layer=2",
        "injection=layers",
    ]


def test_what_all_but_one_have_goes_without_saying():
    whole = "method=x memory.topk=4 memory.window=8 memory.rate=2"
    parts = [whole.replace(a, b) for a, b in (("k=4", "k=0"), ("w=8", "w=0"), ("e=2", "e=1"))]
    assert labels(whole, *parts) == ["unchanged", "topk=0", "window=0", "rate=1"]


def test_cells_are_read_with_what_became_of_them(output):
    study = read_study(output, "small")
    assert [cell.label for cell in study.unfinished] == [LEFT_OUT]
    assert study.unfinished[0].last_log_lines() == ["not begun"]
    assert study.command.startswith("unimem-sweep sweeps=")
    search = replace(study, fields=study.fields | {"command": "unimem-search"})
    assert search.command.startswith("unimem-search sweeps=")
    assert study.fields["claim"] == "The deeper layer is the better one."


def test_trouble_has_the_end_of_the_log(output, tmp_path):
    copied = copy_of(output, tmp_path)
    cell = read_study(copied, "small").cells[0]
    (cell.folder / "result.json").unlink()
    cell.folder.with_name(f"{cell.folder.name}.log").write_text("a\nb\nMemoryError\n")
    (cell,) = (c for c in read_study(copied, "small").unfinished if c.folder == cell.folder)
    assert cell.last_log_lines(2) == ["unfinished: step 2 of 2", "b", "MemoryError"]


def test_seeds_pool_although_each_starts_from_weights_of_its_own(output, tmp_path):
    copied = copy_of(output, tmp_path)
    path = copied / "small" / "study.json"
    record = json.loads(path.read_text())
    for i, cell in enumerate(record["cells"]):
        cell["base"] = f"{i}"
        cell["overrides"] += [f"model.name=/somewhere/base-{i}/model"]
    path.write_text(json.dumps(record))
    assert [len(group.cells) for group in read_study(copied, "small").groups()] == [2, 2, 2]


def test_overrides_that_add_or_force_are_named_like_others(output, tmp_path):
    copied = copy_of(output, tmp_path)
    path = copied / "small" / "study.json"
    record = json.loads(path.read_text())
    record["cells"][0]["overrides"] = ["++preset.size=4"]
    path.write_text(json.dumps(record))
    assert read_study(copied, "small").cells[0].overrides == {"preset.size": "4"}


def test_trials_that_were_drawn_are_named_by_all_that_varied():
    drawn = ("layers=[0,1] k=4", "layers=[2] k=4", "layers=[3] k=8")
    assert labels(*drawn) == [*drawn]
