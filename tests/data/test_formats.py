import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow
import pyarrow.parquet
import pytest

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


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", n=[1, 2, 3], code=[TEXT, None, "b"])
    one, two, three = read(path)
    assert (one.text, one.name) == (TEXT, "a.parquet:1")
    assert two.problem == "without a string in text, content or code"
    assert three.text == "b"


def test_text_column_is_found_in_order_or_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", code=["c"], text=["t"], body=["b"])
    assert [record.text for record in read(path)] == ["t"]
    assert [record.text for record in read(path, "body")] == ["b"]
    (record,) = read(path, "nope")
    assert record.problem == "without a string in nope"
    assert record.detail == "it has code, text, body"


def test_the_text_column_is_found_in_each_row(tmp_path):
    rows = [{"id": 1}, {"text": None, "content": "a"}, {"code": "b", "content": 3}, {"text": "c"}]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert [record.text for record in read(path)] == ["", "a", "b", "c"]
    assert [bool(record.problem) for record in read(path)] == [True, False, False, False]


ROWS_OF_TEXT = [{"id": "1", "text": 'a, "b"\nc'}, {"id": "2", "text": "größer\t€"}]


def csv_of(delimiter):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["id", "text"], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS_OF_TEXT)
    return stream.getvalue().encode()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", json.dumps(ROWS_OF_TEXT, indent=1).encode()),
        ("a.json", "\n".join(map(json.dumps, ROWS_OF_TEXT)).encode()),
        ("a.csv", csv_of(",")),
        ("a.CSV", b"\xef\xbb\xbf" + csv_of(",")),
        ("a.tsv", csv_of("\t")),
        ("a.JSONL", "\n".join(map(json.dumps, ROWS_OF_TEXT)).encode()),
    ],
)
def test_other_files_of_rows(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert is_text_file(tmp_path / name)
    found = read(tmp_path / name)
    assert [record.text for record in found] == [row["text"] for row in ROWS_OF_TEXT]
    assert [record.name for record in found] == [f"{name}:1", f"{name}:2"]


def test_one_json_object_is_a_row_and_other_json_is_named(tmp_path):
    for content, found in [
        ('{"text": "a"}', ("a", None)),
        ('["a"]', ("", "not a JSON object")),
        ("3", ("", "not a JSON object")),
        ("{", ("", "not JSON")),
        ("[" * 100_000 + "]" * 100_000, ("", "not JSON")),
    ]:
        (tmp_path / "a.json").write_text(content)
        (record,) = read(tmp_path / "a.json")
        assert (record.text, record.problem) == found


def test_a_csv_field_may_be_long_and_a_bad_one_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\n" + b"a" * 300_000 + b"\nb\xff\nc\n")
    assert [(len(r.text), r.problem) for r in read(path)] == [
        (300_000, None),
        (0, "not valid Unicode"),
        (1, None),
    ]


def test_deep_json_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + '}\n{"text": "b"}\n')
    assert [(r.text, r.problem) for r in read(path)] == [("", "not JSON"), ("b", None)]


@pytest.mark.parametrize("compression", WRITERS)
def test_what_is_longer_than_memory_allows_is_named(tmp_path, monkeypatch, compression):
    monkeypatch.setattr("unimem.data.formats.LONGEST", 1000)
    for name, found in [
        ("a.txt", ["longer than 1000 bytes"]),
        ("a.json", ["longer than 1000 bytes"]),
        ("a.jsonl", [None, "longer than 1000 bytes", None]),
    ]:
        row = b'{"text": "b"}\n'
        data = row + b"x" * 3000 + b"\n" + row
        WRITERS[compression](tmp_path / f"{name}{compression}", data)
        assert [r.problem for r in read(tmp_path / f"{name}{compression}")] == found


def test_parquet_strings_need_not_be_valid(tmp_path):
    raw = pyarrow.array([b"good", b"\xff", None], pyarrow.binary()).view(pyarrow.string())
    path = parquet(tmp_path / "a.parquet", text=raw, repo_name=["u/a", "u/b", None])
    assert [(r.text, r.problem, r.repository) for r in read(path)] == [
        ("good", None, "u/a"),
        ("", "not valid Unicode", "u/b"),
        ("", "without a string in text, content or code", None),
    ]


@pytest.mark.parametrize(
    "array",
    [
        pyarrow.array(["a", "b"], pyarrow.large_string()),
        pyarrow.array(["a", "b"]).dictionary_encode(),
        pyarrow.array(["a", "b"], pyarrow.string_view()),
    ],
)
def test_every_kind_of_string_in_parquet(tmp_path, array):
    path = parquet(tmp_path / "a.parquet", text=array)
    assert [record.text for record in read(path)] == ["a", "b"]


@pytest.mark.parametrize("kind", ["Image", "Audio", "Video", "Pdf", "Json", "Nothing known"])
def test_metadata_of_a_parquet_file_makes_nobody_open_what_it_names(tmp_path, monkeypatch, kind):
    opened = []
    monkeypatch.setattr("socket.socket.connect", lambda *given: opened.append(given))
    features = {"text": {"dtype": "string", "_type": "Value"}, "img": {"_type": kind}}
    types = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    images = pyarrow.array([{"bytes": None, "path": "http://127.0.0.1:9/leak"}], types)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    table = pyarrow.table({"text": ["hello"], "img": images}).replace_schema_metadata(metadata)
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    (record,) = read(tmp_path / "x.parquet")
    assert (record.text, record.problem, opened) == ("hello", None, [])


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
        ("a.jsonl:4", "without a string in text, content or code"),
        ("a.jsonl:5", "without a string in text, content or code"),
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
