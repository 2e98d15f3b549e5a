"""Files of text, read as records: one per plain text file, one per row of jsonl, csv or parquet.

A record that cannot be used is not dropped here but says what is wrong with it, so that whoever
reads can count and name it.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pyarrow

PLAIN = (".txt", ".text", ".md", ".py", ".raw", ".tokens")
ROWS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
TEXT_COLUMNS = ("text", "content", "code")
REPOSITORY_COLUMN = "repo_name"
"""Column that says which repository a source file belongs to."""

LONGEST = 1 << 30
"""Bytes of the longest text or line that is read, when decompressed."""


@dataclass(frozen=True)
class Record:
    """One would-be document.

    Attributes:
        name: file name, and row number where a file has rows.
        text: the text; empty where there is a problem.
        repository: what the row holds in the column `repo_name`; None where it holds nothing.
        problem: why there is no text, in words that many records share; None where there is.
        detail: what is special about the problem of this one.
    """

    name: str
    text: str = ""
    repository: str | None = None
    problem: str | None = None
    detail: str = ""


@dataclass(frozen=True)
class BadRow:
    """A row that could not be read, and why."""

    problem: str


Row = Mapping[str, Any] | BadRow | None
"""A row of a file; None where there is nothing, such as an empty line."""


def suffix_of(path: Path) -> str:
    """Return the suffix that tells the format, in lower case: `.jsonl` of `a.JSONL.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def is_text_file(path: Path) -> bool:
    """Return whether the name is that of a format read here."""
    return suffix_of(path) in PLAIN + ROWS


def is_plain(path: Path) -> bool:
    """Return whether the file is one document."""
    return suffix_of(path) not in ROWS


def read_records(path: Path, name: str, text_column: str | None) -> Iterator[Record]:
    """Read a file; `name` is what its records are called after."""
    try:
        if is_plain(path):
            with _open(path) as file:
                yield _plain_record(name, file.read(LONGEST + 1))
            return
        yield from records_of_rows(_rows(path, columns_of(text_column)), name, text_column)
    except Exception as error:  # of the decompressors, csv, pyarrow, the system; memory too
        reason = str(error).partition("\n")[0]
        yield Record(name, problem="not readable", detail=f"{type(error).__name__}: {reason}")


def columns_of(text_column: str | None) -> tuple[str, ...]:
    """Return the columns in which the text is looked for: in each row, the first that holds one."""
    return TEXT_COLUMNS if text_column is None else (text_column,)


def spelled(columns: tuple[str, ...]) -> str:
    """Return the columns as words: `text, content or code`."""
    *first, last = columns
    return f"{', '.join(first)} or {last}" if first else last


def records_of_rows(rows: Iterable[Row], name: str, text_column: str | None) -> Iterator[Record]:
    """Turn rows into records, called after `name` and the row's number from 1."""
    columns = columns_of(text_column)
    lacking = f"without a string in {spelled(columns)}"
    for number, row in enumerate(rows, start=1):
        row_name = f"{name}:{number}"
        if row is None:
            continue
        if isinstance(row, BadRow):
            yield Record(row_name, problem=row.problem)
            continue
        repository = row.get(REPOSITORY_COLUMN)
        if isinstance(repository, bytes):
            repository = repository.decode("utf-8", "backslashreplace")
        common = Record(row_name, repository=repository if isinstance(repository, str) else None)
        text = next((row[c] for c in columns if isinstance(row.get(c), str | bytes)), None)
        if text is None:
            there = ", ".join(ascii(key)[1:-1] for key in row)
            yield replace(common, problem=lacking, detail=f"it has {there or 'no columns'}")
            continue
        try:
            # Lone surrogates, which JSON can spell and UTF-8 cannot, do not encode.
            text = text.decode("utf-8") if isinstance(text, bytes) else text
            text.encode("utf-8")
        except UnicodeError:
            yield replace(common, problem="not valid Unicode")
        else:
            yield replace(common, text=text)


def _plain_record(name: str, data: bytes) -> Record:
    if len(data) > LONGEST:
        return Record(name, problem=_too_long())
    try:
        return Record(name, data.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        return Record(name, problem="not UTF-8", detail=f"byte {error.start}")


def _too_long() -> str:
    return f"longer than {LONGEST} bytes"


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    suffix = suffix_of(path)
    if suffix == ".parquet":
        yield from _parquet_rows(path, (*columns, REPOSITORY_COLUMN))
        return
    with _open(path) as file:
        if suffix in (".csv", ".tsv"):
            yield from _csv_rows(file, "," if suffix == ".csv" else "\t")
        elif suffix == ".json":
            yield from _json_rows(file)
        else:
            yield from _jsonl_rows(file)


def _jsonl_rows(file: io.BufferedIOBase) -> Iterator[Row]:
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST)
            yield BadRow(_too_long())
        elif line.strip():
            yield _json_row(line)
        else:
            yield None


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return BadRow("not JSON")
    return row if isinstance(row, dict) else BadRow("not a JSON object")


def _json_rows(file: io.BufferedIOBase) -> Iterator[Row]:
    """Read one JSON document, a list of objects or one object; else each line as JSON."""
    data = file.read(LONGEST + 1)
    if len(data) > LONGEST:
        yield BadRow(_too_long())
        return
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        yield from _jsonl_rows(io.BytesIO(data))
        return
    for row in value if isinstance(value, list) else [value]:
        yield row if isinstance(row, dict) else BadRow("not a JSON object")


def _csv_rows(file: io.BufferedIOBase, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST)
    # Bytes that are not UTF-8 become lone surrogates, which each row is looked through for.
    text = io.TextIOWrapper(
        cast(Any, file), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    try:
        for row in csv.DictReader(text, delimiter=delimiter):
            yield {key: value for key, value in row.items() if isinstance(key, str)}
    finally:
        text.detach()  # or it would close the file


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    """Read the named columns and no other; what the file's metadata says of types is not followed.

    `datasets` would decode a column that is said to be an image, and open the URL in it.
    """
    # Only parquet needs it.
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        names = file.schema_arrow.names
        chosen = [name for name in columns if name in names]
        if not any(name in chosen for name in columns if name != REPOSITORY_COLUMN):
            for _ in range(file.metadata.num_rows):
                yield dict.fromkeys(names)
            return
        for batch in file.iter_batches(batch_size=64, columns=chosen):
            values = [_strings(batch.column(name)) for name in chosen]
            for row in zip(*values, strict=True):
                yield dict(zip(chosen, row, strict=True))


def _strings(column: Any) -> list[bytes | None]:
    """Return the strings of a column as bytes, which need not be UTF-8; None for what is none."""
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kinds = ("is_string", "is_large_string", "is_string_view")
    if not any(getattr(pyarrow.types, kind)(column.type) for kind in kinds):
        return [None] * len(column)
    return column.cast(pyarrow.large_binary()).to_pylist()


def _open(path: Path) -> io.BufferedIOBase:
    match path.suffix.lower():
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
