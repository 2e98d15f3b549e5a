"""The table of docs/reliability.md: a row for every fault of the suite, and what was counted."""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
HEAD = ("", "fault", "promise", "injected", "held", "seconds")


@dataclass(frozen=True)
class Row:
    """A fault and a promise, and how often the one came and the other was kept.

    Attributes:
        id: letter of the kind and number, as K1.
        injected: faults that really came; None where nothing was counted.
        held: in how many of them the promise was kept.
        seconds: what the tests took.
    """

    id: str
    fault: str
    promise: str
    injected: int | None = None
    held: int | None = None
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other rows."""
        return self.id, self.fault, self.promise

    def line(self) -> str:
        """Write it as a line of the table."""
        counts = [str(self.injected), str(self.held), f"{self.seconds:.0f}"]
        return f"| {' | '.join([*self.key, *counts])} |"


def rows_of_suite(folder: Path = Path(__file__).parent) -> Iterator[tuple[Row, str]]:
    """Give the rows that the tests of a folder name, each with its test, in the files' order."""
    for path in sorted(folder.glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    yield Row(*map(ast.literal_eval, mark.args)), f"{path.name}::{node.name}"


def rows_of_page(text: str) -> list[Row]:
    """Read the rows of the table in a page."""
    rows: list[Row] = []
    for line in _between(text).splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if len(cells) == len(HEAD) and cells[3].isdigit():
            name, fault, promise, injected, held, seconds = cells
            rows.append(Row(name, fault, promise, int(injected), int(held), float(seconds)))
    return rows


def with_rows(text: str, rows: Iterable[Row]) -> str:
    """Give the page with these rows in place of its own."""
    lines = [f"| {' | '.join(HEAD)} |", "|---|---|---|--:|--:|--:|"]
    lines += [row.line() for row in sorted(rows, key=_order)]
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    return "\n".join([before + BEGIN, *lines, end + after])


def sums(reports: Iterable[Any]) -> list[Row]:
    """Add up what the reports of tests counted, by row."""
    rows: dict[tuple[str, str, str], Row] = {}
    for report in reports:
        for name, (key, injected, held) in report.user_properties:
            if name == "fault" and report.when == "call":
                before = rows.get(tuple(key), Row(*key, 0, 0))
                assert before.injected is not None and before.held is not None
                rows[tuple(key)] = Row(
                    *key,
                    before.injected + injected,
                    before.held + held,
                    before.seconds + report.duration,
                )
    return sorted(rows.values(), key=_order)


def rewritten(text: str, counted: Iterable[Row]) -> str:
    """Give the page with what was counted now; of rows that were not run, what it said before."""
    known = {row.key: row for row in [*rows_of_page(text), *counted]}
    keys = {row.key for row, _ in rows_of_suite()}
    return with_rows(text, [row for key, row in known.items() if key in keys])


def _between(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def _order(row: Row) -> tuple[str, int, str]:
    letters, number = re.fullmatch(r"([A-Z]+)(\d+)", row.id).groups()  # pyright: ignore
    kinds = "KRVCDSPNEUWBX"
    return str(kinds.find(letters)).zfill(2), int(number), row.fault
