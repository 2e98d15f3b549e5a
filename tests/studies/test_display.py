from dataclasses import replace

import pytest
from rich.console import Console
from studies.conftest import TINY

from unimem.studies.run.cell_state import log_file, progress
from unimem.studies.run.display import Lines, print_lines, summary, table
from unimem.studies.run.runner import State, Status
from unimem.studies.study import expand


@pytest.fixture
def statuses(tmp_path) -> list[Status]:
    cells = expand([*TINY, f"output={tmp_path}", "seed=0,1,2"]).cells
    return [Status(cell=cell) for cell in cells]


def write_metrics(status: Status) -> None:
    status.cell.folder.mkdir(parents=True)
    line = '{{"step": {0}, "loss": 1.0, "perplexity": {0}.25, "seconds": {1}}}\n'
    text = line.format(1, 10.0) + line.format(2, 20.0)
    (status.cell.folder / "metrics.jsonl").write_text(text + '{"step": 3, "lo')


def test_counts(statuses):
    statuses[0].state, statuses[0].resumed = State.FAILED, True
    assert summary(statuses) == "0 of 3 done, 1 resumed, 1 failed, 2 waiting"


def test_progress_is_the_last_whole_line(statuses):
    assert progress(statuses[0].cell) is None
    write_metrics(statuses[0])
    found = progress(statuses[0].cell)
    assert found is not None and (found.step, found.perplexity, found.seconds) == (2, 2.25, 20.0)


@pytest.mark.parametrize(
    "line", ["[1]", "3", '{"perplexity": 2.0}', "[" * 8000, "{", "\0", '"\\ud800"']
)
def test_a_damaged_line_is_passed_over(statuses, line):
    write_metrics(statuses[0])
    with (statuses[0].cell.folder / "metrics.jsonl").open("a") as file:
        file.write(f"\n{line}\n")
    found = progress(statuses[0].cell)
    assert found is not None and found.step == 2


def test_table_shows_what_runs_first(statuses):
    write_metrics(statuses[2])
    statuses[2].state = State.RUNNING
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table(statuses))
    lines = [line.split() for line in captured.get().splitlines()]
    assert lines[2] == ["seed=2", "running", "2/8", "2.25", "1:00"]
    assert [line[:2] for line in lines[3:]] == [["seed=0", "waiting"], ["seed=1", "waiting"]]


def test_a_failure_is_shown_with_its_last_lines(statuses):
    status = statuses[1]
    status.state, status.reason = State.FAILED, "exit status 1"
    log_file(status.cell).parent.mkdir(parents=True)
    log_file(status.cell).write_text("".join(f"[line {i}]\n" for i in range(9)))
    console = Console(width=20)
    with console.capture() as captured:
        Lines(console).changed(status)
    lines = captured.get().splitlines()
    assert lines[0] == "failed    seed=1  exit status 1"
    assert lines[1:6] == [f"  [line {i}]" for i in range(4, 9)]
    assert lines[6] == f"  whole log: {log_file(status.cell)}"


def test_running_cells_are_shown_every_so_often_off_a_terminal(statuses, monkeypatch):
    write_metrics(statuses[2])
    statuses[2].state = State.RUNNING
    console = Console(width=20)
    with console.capture() as captured:
        lines = Lines(console)
        lines.look(statuses)  # a minute has not passed
        monkeypatch.setattr(lines, "EVERY", 0)
        lines.look(statuses)
    assert captured.get() == "running   seed=2  step 2/8, perplexity 2.25, 1:00 left\n"


def test_a_label_is_neither_markup_nor_control_characters(statuses):
    label = "data.path=[/a,/b] [red]x[/red] \x1b[2J"
    status = Status(cell=replace(statuses[0].cell, label=label))
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table([status]))
        print_lines(console, label)
    shown = captured.get()
    assert shown.count("data.path=[/a,/b] [red]x[/red] \\x1b[2J") == 2 and "\x1b[2J" not in shown
