"""Rows of values as text for a terminal, Markdown, LaTeX and CSV, and as Parquet.

Text in them stays text: see `unimem.results.escape`.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unimem.results.escape import in_csv, in_latex, in_markdown
from unimem.words import printable, writing

Rows = Sequence[Mapping[str, Any]]


def as_text(rows: Rows, columns: Sequence[str]) -> str:
    """Return a table for the terminal: columns side by side, numbers to the right."""
    cells = [[printable(cell, one_line=True) for cell in row] for row in _cells(rows, columns)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [_numeric(rows, column) for column in columns]
    lines = [
        "  ".join(
            text.rjust(width) if to_right else text.ljust(width)
            for text, width, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    ]
    return "\n".join(lines)


def as_markdown(rows: Rows, columns: Sequence[str]) -> str:
    """Return a Markdown table."""
    head, *body = ([in_markdown(cell) for cell in line] for line in _cells(rows, columns))
    rule = ["---:" if _numeric(rows, column) else "---" for column in columns]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *body))


def as_latex(rows: Rows, columns: Sequence[str]) -> str:
    r"""Return a LaTeX tabular; it needs `\usepackage{booktabs}`."""
    head, *body = (f"{' & '.join(map(in_latex, line))} \\\\" for line in _cells(rows, columns))
    align = "".join("r" if _numeric(rows, column) else "l" for column in columns)
    lines = [f"\\begin{{tabular}}{{{align}}}", "\\toprule", head, "\\midrule", *body]
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"])


def as_csv(rows: Rows, columns: Sequence[str]) -> str:
    """Return comma-separated values, in full precision; no text is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(in_csv, columns))
    writer.writerows([_field(row.get(column)) for column in columns] for row in rows)
    return text.getvalue().removesuffix("\n")


FORMATS = {"table": as_text, "csv": as_csv, "md": as_markdown, "latex": as_latex}
"""The formats that are text, by name."""


def write_parquet(rows: Rows, columns: Sequence[str], path: Path) -> None:
    """Write a Parquet file; a column of several types is one of strings."""
    import pyarrow
    import pyarrow.parquet

    values = {column: [_plain(row.get(column)) for row in rows] for column in columns}
    for column, found in values.items():
        kinds = {type(value) for value in found if value is not None}
        if len(kinds) > 1 and not kinds <= {int, float}:
            values[column] = [None if value is None else printable(str(value)) for value in found]
        elif kinds == {int, float}:
            values[column] = [None if value is None else float(value) for value in found]
        elif kinds == {str}:  # half a character is in JSON, but in no file
            values[column] = [None if value is None else printable(value) for value in found]
    with writing(path):
        pyarrow.parquet.write_table(pyarrow.table(values), path)


def short(value: Any) -> str:
    """Write a value for reading: five significant digits, a dash where there is none."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if 1e5 <= abs(value) < 1e9 else f"{value:.5g}"
    return str(_plain(value))


def shown_value(column: str, value: Any) -> str:
    """Write a value of a column for reading; bytes in the unit that suits them."""
    if column.endswith("_bytes") and isinstance(value, int | float):
        return size(value)
    return short(value)


def size(count: float) -> str:
    """Write a number of bytes with three digits: 1.39 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _cells(rows: Rows, columns: Sequence[str]) -> list[list[str]]:
    body = ([shown_value(column, row.get(column)) for column in columns] for row in rows)
    return [list(columns), *body]


def _numeric(rows: Rows, column: str) -> bool:
    found = [row[column] for row in rows if row.get(column) is not None]
    return bool(found) and all(isinstance(value, int | float) for value in found)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _field(value: Any) -> Any:
    plain = _plain(value)
    return in_csv(plain) if isinstance(plain, str) else plain
