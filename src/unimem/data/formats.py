"""Files of text, read as records: one per plain text file, one per row of jsonl or parquet.

A record that cannot be used is not dropped here but says what is wrong with it, so that whoever
reads can count and name it.
"""

import bz2
import gzip
import io
import json
import lzma
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pyarrow

from unimem.data.documents import DataError

PLAIN = (".txt", ".md", ".py")
ROWS = (".jsonl", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
TEXT_COLUMNS = ("text", "content", "code")


@dataclass(frozen=True)
class Record:
    """One would-be document.

    Attributes:
        name: file name, and row number where a file has rows.
        text: the text; empty where there is a problem.
        fields: the other columns of the row.
        problem: why there is no text, in words that many records share; None where there is.
        detail: what is special about the problem of this one.
    """

    name: str
    text: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    detail: str = ""


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the format: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def is_text_file(path: Path) -> bool:
    """Tell whether the name is that of a format read here."""
    return suffix_of(path) in PLAIN + ROWS


def is_plain(path: Path) -> bool:
    """Tell whether the file is one document."""
    return suffix_of(path) in PLAIN


def read_records(path: Path, name: str, text_column: str | None) -> Iterator[Record]:
    """Read a file; `name` is what its records are called after.

    Raises:
        DataError: no column holds the text.
    """
    try:
        if is_plain(path):
            with _open(path) as file:
                yield _decoded(name, file.read())
        elif suffix_of(path) == ".parquet":
            yield from records_of_rows(_parquet_rows(path), name, text_column)
        else:
            with _open(path) as file:
                yield from records_of_rows(_json_rows(file), name, text_column)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pyarrow.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        yield Record(name, problem="not readable", detail=f"{type(error).__name__}: {reason}")


def records_of_rows(
    rows: Iterable[Mapping[str, Any] | str | None], name: str, text_column: str | None
) -> Iterator[Record]:
    """Turn rows into records, called after `name` and the row's number from 1.

    None is a row that holds nothing; a string is the problem that stands in a row's place.

    Raises:
        DataError: the first row has no column that holds the text.
    """
    column: str | None = None
    for number, row in enumerate(rows, start=1):
        row_name = f"{name}:{number}"
        if row is None:
            continue
        if isinstance(row, str):
            yield Record(row_name, problem=row)
            continue
        column = column or _text_column(row, name, text_column)
        fields = {key: value for key, value in row.items() if key != column}
        text = row.get(column)
        if not isinstance(text, str):
            yield Record(row_name, fields=fields, problem=f"without a string in {column!r}")
        elif not _is_unicode(text):
            yield Record(row_name, fields=fields, problem="not valid Unicode")
        else:
            yield Record(row_name, text, fields)


def _text_column(row: Mapping[str, Any], name: str, wanted: str | None) -> str:
    for column in (wanted,) if wanted else TEXT_COLUMNS:
        if column in row:
            return column
    sought = wanted or ", ".join(TEXT_COLUMNS)
    raise DataError(
        f"{name} has no column {sought} (it has {', '.join(map(str, row))}): "
        "name the one that holds the text with data.text_column="
    )


def _decoded(name: str, data: bytes) -> Record:
    try:
        return Record(name, data.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        return Record(name, problem="not UTF-8", detail=f"byte {error.start}")


def _is_unicode(text: str) -> bool:
    """Tell apart the lone surrogates that JSON can spell and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _json_rows(file: io.BufferedIOBase) -> Iterator[Mapping[str, Any] | str | None]:
    for line in file:
        if not line.strip():
            yield None
            continue
        try:
            row = json.loads(line)
        except ValueError:
            yield "not JSON"
            continue
        yield row if isinstance(row, dict) else "not a JSON object"


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    # Slow to import, and only parquet needs it. Not load_dataset: that reports its use over the
    # network even for local files.
    from datasets import Dataset

    with tempfile.TemporaryDirectory() as cache:
        rows = Dataset.from_parquet(str(path), streaming=True, cache_dir=cache)
        yield from cast(Iterable[Mapping[str, Any]], rows)


def _open(path: Path) -> io.BufferedIOBase:
    match path.suffix:
        case ".gz":
            return gzip.open(path)
        case ".bz2":
            return bz2.open(path)
        case ".xz":
            return lzma.open(path)
        case ".zst":
            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
        case _:
            return path.open("rb")
