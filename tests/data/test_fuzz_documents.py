"""Files of others, damaged or made to harm: each is read, or named and counted."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unimem.data.formats import PLAIN, ROWS, read_records

SUFFIXES = [*PLAIN, *ROWS]
COMPRESSIONS = ["", ".gz", ".bz2", ".xz", ".zst"]
FUZZ = {"deadline": None, "derandomize": True,
        "suppress_health_check": [HealthCheck.function_scoped_fixture]}  # fmt: skip


def parquet_bytes() -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": ["hello", None, "wörld"], "repo_name": ["a", "b", "c"]})
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


VALID = {
    ".jsonl": b'{"text": "one"}\n\n{"content": "two", "text": null}\n{"text": 3}\n',
    ".json": b'[{"text": "one"}, {"text": "two"}]',
    ".csv": b'text,id\n"one, two",1\nthree,2\n',
    ".tsv": b"text\tid\none\t1\n",
    ".parquet": parquet_bytes(),
}
"""By suffix, a file that is mutated."""


def check(path, data: bytes) -> None:
    path.write_bytes(data)
    for record in read_records(path, path.name, None):
        assert isinstance(record.text, str) and record.name.startswith(path.name)
        assert record.problem is None or record.text == "", record
        assert "\n" not in record.detail
        record.text.encode("utf-8")  # no half of a surrogate pair reaches the tokenizer


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(max_examples=20, **FUZZ)
@given(data=st.binary(max_size=300), compression=st.sampled_from(COMPRESSIONS))
@example(data=b"\xff\xfe\x00a", compression="")
@example(data=b"[" * 100_000, compression="")
@example(data=b'{"text": ' + b"[" * 100_000 + b"\n", compression="")
@example(data=b'{"text": "\\ud800"}\n', compression="")
@example(data=b'[{"text": "\\ud800"}]', compression="")
@example(data=b'{"text": ' + b"9" * 10_000 + b"}\n", compression="")
@example(data=b'{"text": "a", "text": NaN}\n', compression="")
@example(data=b"PAR1" + b"\x00" * 100 + b"PAR1", compression="")
@example(data=gzip.compress(b"cut")[:-4], compression=".gz")
@example(data=gzip.compress(b"one") + b"garbage", compression=".gz")
def test_any_bytes_are_read_or_named(tmp_path, suffix, data, compression):
    check(tmp_path / f"a{suffix}{compression}", data)


@st.composite
def mutated(draw, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        if kind == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del found[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            found[at:at] = draw(st.binary(max_size=8))
        else:
            found[at:at] = found[at : at + 40]
    return bytes(found)


def mutations(suffix: str):
    return mutated(VALID[suffix])


@pytest.mark.parametrize("suffix", VALID)
@settings(max_examples=60, **FUZZ)
@given(data=st.data())
def test_damaged_files_are_read_or_named(tmp_path, suffix, data):
    check(tmp_path / f"a{suffix}", data.draw(mutations(suffix)))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", VALID)
@settings(max_examples=3000, **FUZZ)
@given(data=st.data())
def test_many_damaged_files_are_read_or_named(tmp_path, suffix, data):
    check(tmp_path / f"a{suffix}", data.draw(mutations(suffix)))


@st.composite
def rows(draw):
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
    keys = st.sampled_from(["text", "content", "code", "repo_name"]) | st.text(max_size=5)
    return draw(st.lists(st.dictionaries(keys, values, max_size=3) | values, max_size=4))


@settings(max_examples=150, **FUZZ)
@given(rows=rows())
def test_rows_of_any_shape_are_read_or_named(tmp_path, rows):
    lines = "\n".join(json.dumps(row) for row in rows)
    check(tmp_path / "a.jsonl", lines.encode("utf-8", "surrogatepass"))
    check(tmp_path / "a.json", json.dumps(rows).encode("utf-8", "surrogatepass"))
