import bz2
import gzip
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

from unimem.data.documents import DataError
from unimem.data.formats import is_text_file, read_records

TEXT = "Grüße,\r\nWelt \0 🙂\n"


def write_zst(path, data):
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(data)


WRITERS = {
    "": lambda path, data: path.write_bytes(data),
    ".gz": lambda path, data: path.write_bytes(gzip.compress(data, mtime=0)),
    ".bz2": lambda path, data: path.write_bytes(bz2.compress(data)),
    ".xz": lambda path, data: path.write_bytes(lzma.compress(data)),
    ".zst": write_zst,
}


def read(path, text_column=None):
    return list(read_records(path, path.name, text_column))


@pytest.mark.parametrize("compression", WRITERS)
@pytest.mark.parametrize("suffix", [".txt", ".md", ".py"])
def test_plain_files_come_back_to_the_byte(tmp_path, suffix, compression):
    path = tmp_path / f"a{suffix}{compression}"
    WRITERS[compression](path, TEXT.encode())
    (record,) = read(path)
    assert (record.name, record.text, record.problem) == (path.name, TEXT, None)
    assert is_text_file(path)


@pytest.mark.parametrize("compression", WRITERS)
def test_jsonl(tmp_path, compression):
    path = tmp_path / f"a.jsonl{compression}"
    lines = [json.dumps({"id": i, "content": TEXT * i}) for i in (1, 2)]
    WRITERS[compression](path, "\n\n".join(lines).encode())
    one, two = read(path)
    assert (one.name, two.name) == (f"{path.name}:1", f"{path.name}:3")
    assert (one.text, two.text) == (TEXT, TEXT * 2)
    assert two.fields == {"id": 2}


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", n=[1, 2, 3], code=[TEXT, None, "b"])
    one, two, three = read(path)
    assert (one.text, one.fields, one.name) == (TEXT, {"n": 1}, "a.parquet:1")
    assert two.problem == "without a string in 'code'"
    assert three.text == "b"


def test_text_column_is_found_in_order_or_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", code=["c"], text=["t"], body=["b"])
    assert [record.text for record in read(path)] == ["t"]
    assert [record.text for record in read(path, "body")] == ["b"]
    with pytest.raises(DataError, match=r"a.parquet has no column nope \(it has code, text, body"):
        read(path, "nope")
    other = parquet(tmp_path / "b.parquet", body=["b"])
    with pytest.raises(DataError, match=r"no column text, content, code .*data.text_column="):
        read(other)


def test_a_byte_order_mark_is_not_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfa")
    assert read(tmp_path / "a.txt")[0].text == "a"


def test_bad_rows_are_named_one_by_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"text": "good"}\n{"text": oops}\n[1]\n{"text": 3}\n{"other": ""}\n'
        b'{"text": "\\ud800"}\n{"text": "\xff"}\n{"text": "good"'
    )
    assert [(r.name, r.problem) for r in read(path)] == [
        ("a.jsonl:1", None),
        ("a.jsonl:2", "not JSON"),
        ("a.jsonl:3", "not a JSON object"),
        ("a.jsonl:4", "without a string in 'text'"),
        ("a.jsonl:5", "without a string in 'text'"),
        ("a.jsonl:6", "not valid Unicode"),
        ("a.jsonl:7", "not JSON"),
        ("a.jsonl:8", "not JSON"),
    ]


@pytest.mark.parametrize(
    ("name", "data", "problem", "detail"),
    [
        ("a.txt", b"abc\xffd", "not UTF-8", "byte 3"),
        ("a.txt.gz", gzip.compress(b"abc" * 999, mtime=0)[:-9], "not readable", "EOFError"),
        ("a.txt.gz", b"not gzip", "not readable", "BadGzipFile"),
        ("a.txt.xz", b"not xz", "not readable", "LZMAError"),
        ("a.txt.zst", b"not zstd", "not readable", "OSError"),
        ("a.parquet", b"PAR1 not parquet", "not readable", "ArrowInvalid"),
        ("a.parquet", b"", "not readable", "ArrowInvalid"),
    ],
)
def test_bad_files_are_named(tmp_path, name, data, problem, detail):
    (tmp_path / name).write_bytes(data)
    (record,) = read(tmp_path / name)
    assert (record.name, record.problem) == (name, problem)
    assert detail in record.detail


def test_a_file_that_is_gone_is_named(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    (record,) = read(tmp_path / "a.txt")
    assert record.problem == "not readable" and "No such file" in record.detail
