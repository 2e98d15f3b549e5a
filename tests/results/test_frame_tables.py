import csv
import io

import pyarrow.parquet
import pytest

from unimem.results.frame_tables import (
    FORMATS,
    as_csv,
    as_latex,
    as_markdown,
    as_text,
    write_parquet,
)

ROWS = [{"name": "a_b", "nll": 1.234567891, "size": None}, {"name": "c|d", "nll": 12.5}]
COLUMNS = ["name", "nll", "size"]


def test_text_is_aligned_and_rounded():
    assert as_text(ROWS, COLUMNS).splitlines() == [
        "name     nll  size",
        "a_b   1.2346  -",
        "c|d     12.5  -",
    ]


def test_markdown_escapes_bars():
    head, rule, _, last = as_markdown(ROWS, COLUMNS).splitlines()
    assert (head, rule) == ("| name | nll | size |", "| --- | ---: | --- |")
    assert last == "| c\\|d | 12.5 | - |"


def test_latex_escapes_what_is_special():
    lines = as_latex(ROWS, COLUMNS).splitlines()
    assert lines[0] == "\\begin{tabular}{lrl}" and lines[-1] == "\\end{tabular}"
    assert "a\\_b & 1.2346 & - \\\\" in lines


def test_csv_keeps_every_digit():
    first, _ = csv.DictReader(io.StringIO(as_csv(ROWS, COLUMNS)))
    assert float(first["nll"]) == ROWS[0]["nll"] and first["size"] == ""


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_without_rows_has_its_head(form):
    assert "name" in FORMATS[form]([], COLUMNS)


def test_parquet_makes_strings_of_mixed_columns(tmp_path):
    rows = [{"x": 1, "y": 1}, {"x": 2.5, "y": "a"}, {"x": None, "y": [1, 2]}]
    write_parquet(rows, ["x", "y"], tmp_path / "t.parquet")
    table = pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pydict()
    assert table == {"x": [1.0, 2.5, None], "y": ["1", "a", "[1, 2]"]}
