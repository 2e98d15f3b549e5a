import json
import logging
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from unimem.data.build import build_corpus, cache_folder
from unimem.data.documents import DataError


@pytest.fixture
def folder(tmp_path):
    """Forty files of four lines each, in two folders."""
    folder = tmp_path / "texts"
    for i in range(40):
        file = folder / "ab"[i % 2] / f"{i}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"document {i}: größer €\n" * 4, "utf-8")
    return folder


def all_ids(documents):
    return [documents.ids(i).tolist() for i in range(len(documents))]


def texts_of(corpus, documents):
    return [corpus.tokenizer.decode(documents.ids(i)) for i in range(len(documents))]


def names(documents):
    return [documents.name(i) for i in range(len(documents))]


def text(settings, path, **values):
    return build_corpus(settings("text", **({"path": str(path), "vocab_size": 280} | values)))


def test_every_file_is_a_document_of_one_split(settings, folder):
    corpus = text(settings, folder, held_out=0.3)
    found = names(corpus.train) + names(corpus.validation)
    assert sorted(found) == sorted(str(f.relative_to(folder)) for f in folder.rglob("*.txt"))
    assert 3 < len(corpus.validation) < 25
    sizes = corpus.token_bytes
    assert sizes is not None and sizes.shape == (corpus.vocab_size,)
    for documents in (corpus.train, corpus.validation):
        for i in range(len(documents)):
            assert sizes[documents.ids(i)].sum() == (folder / documents.name(i)).stat().st_size


def test_the_second_build_only_opens(settings, folder, caplog):
    first = text(settings, folder)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        second = text(settings, folder)
    assert caplog.text == ""
    assert first.summary() == second.summary()
    assert all_ids(first.train) == all_ids(second.train)


def test_digest_follows_content_and_options(settings, folder):
    digests = {text(settings, folder).digest, text(settings, folder, vocab_size=270).digest}
    digests.add(text(settings, folder, held_out=0.3).digest)
    digests.add(text(settings, folder, max_tokens=20).digest)
    (folder / "a" / "0.txt").write_text("changed\n" * 4, "utf-8")
    digests.add(text(settings, folder).digest)
    assert len(digests) == 5


def test_tokenizer_is_trained_on_the_train_split_only(settings, folder):
    before = text(settings, folder)
    held_out = folder / before.validation.name(0)
    held_out.write_text("zzzz zzzz zzzz zzzz " * 500, "utf-8")
    after = text(settings, folder)
    assert after.digest != before.digest
    assert after.vocabulary == before.vocabulary


def test_held_out_documents_alone_are_the_same_ones(settings, folder, caplog):
    both = text(settings, folder)
    file = settings("text", path=str(folder), vocab_size=280)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        alone = build_corpus(file, train=False)
    assert caplog.text == "" and len(alone.train) == 0
    assert all_ids(alone.validation) == all_ids(both.validation)
    assert alone.vocabulary == both.vocabulary and alone.digest != both.digest
    assert "to train on" not in alone.summary() and "held out" in alone.summary()


def test_limits(settings, folder):
    corpus = text(settings, folder, train_documents=7, validation_documents=1, max_tokens=11)
    assert (len(corpus.train), len(corpus.validation)) == (7, 1)
    assert all(len(ids) == 11 for ids in all_ids(corpus.train))
    assert corpus.skipped["cut at 11 tokens (train)"] == 7
    assert "7 cut at 11 tokens (train)" in corpus.summary()


def test_what_is_left_out_is_counted_and_named(settings, folder, caplog):
    side = {name: "train" for name in names(text(settings, folder).train)}
    bad, short = list(side)[:2]
    (folder / bad).write_bytes(b"\xff")
    (folder / short).write_text("", "utf-8")
    (folder / "image.png").touch()
    with caplog.at_level(logging.WARNING):
        corpus = text(settings, folder)
    assert corpus.skipped == {"not UTF-8 (train)": 1, "shorter than 2 tokens (train)": 1}
    assert f"train: 1 documents not UTF-8: {bad} (byte 0)" in caplog.text
    assert f"train: 1 documents shorter than 2 tokens: {short}" in caplog.text
    assert "1 files of other formats: image.png; read are .txt" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"data.path=.*in does not exist"),
        (lambda p: p.mkdir(), r"data.path=.*in holds no file of text \(.txt .text .md .py"),
        (lambda p: p.write_bytes(b"MZ\0"), r"holds no file of text .*it has 1 of other kinds: in"),
        (os.mkfifo, r"data.path=.*in is neither a file nor a folder"),
    ],
)
def test_a_path_without_text_is_named(settings, tmp_path, make, message):
    make(tmp_path / "in")
    with pytest.raises(DataError, match=message):
        text(settings, tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no usable documents \(left out: 3 shorter than 2 tokens, first 0.md\)"),
        (b"\xff", r"left out: 3 not UTF-8, first 0.md \(byte 0\)\): give more text"),
    ],
)
def test_no_usable_document_is_an_error_that_leaves_nothing(settings, tmp_path, content, message):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.md").write_bytes(content)
    with pytest.raises(DataError, match=message):
        text(settings, tmp_path / "in", held_out=0.01)
    assert not (tmp_path / "cache").exists()


def test_rows_without_the_column_are_named_with_what_they_have(settings, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 1, "body": "b"}\n' * 3)
    with pytest.raises(
        DataError,
        match=r"left out: 3 without a string in text, content or code, first a.jsonl:1 "
        r"\(it has id, body\)\): name the column that holds the text with data.text_column=",
    ):
        text(settings, tmp_path / "a.jsonl")


BOOK = "".join(f"Line {i} of a long book, which tells of {i * i}.\n" for i in range(400))


@pytest.mark.parametrize("name", ["book.txt", "book", "book.TXT", "book.jsonl"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.99])
def test_the_end_of_a_single_text_is_held_out(settings, tmp_path, caplog, name, share):
    rows = json.dumps({"text": BOOK}) if name == "book.jsonl" else BOOK
    (tmp_path / name).write_text(rows)
    with caplog.at_level(logging.WARNING):
        corpus = text(settings, tmp_path / name, held_out=share)
    held = {0.01: 1, 0.1: 2, 0.99: 19}[share]
    assert (len(corpus.train), len(corpus.validation)) == (20 - held, held)
    assert "is one text: cut into 20 documents, of which the last" in caplog.text
    parts = texts_of(corpus, corpus.train) + texts_of(corpus, corpus.validation)
    assert "".join(parts) == BOOK
    assert all(part.endswith("\n") for part in parts)


def test_a_single_text_is_cut_by_document_tokens(settings, tmp_path):
    (tmp_path / "book.txt").write_text(BOOK)
    corpus = text(settings, tmp_path / "book.txt", document_tokens=500)
    lengths = [corpus.train.length(i) for i in range(len(corpus.train))]
    assert len(lengths) > 5 and set(lengths[:-1]) == {500} and lengths[-1] <= 500
    texts = ["".join(texts_of(corpus, x)) for x in (corpus.train, corpus.validation)]
    assert "".join(texts) == BOOK
    assert 0.08 < len(texts[1]) / len(BOOK) < 0.12


def test_long_texts_are_cut_into_documents_that_begin_as_texts_do(settings, folder):
    whole, cut = text(settings, folder), text(settings, folder, document_tokens=20)
    assert cut.digest != whole.digest and len(cut.train) > len(whole.train)
    begin = whole.train.ids(0)[0]
    first = [n for n in names(cut.train) if n.startswith(f"{whole.train.name(0)}[")]
    pieces = [cut.train.ids(names(cut.train).index(name)) for name in first]
    assert all(piece[0] == begin for piece in pieces)
    joined = np.concatenate([[begin], *(piece[1:] for piece in pieces)])
    np.testing.assert_array_equal(joined, whole.train.ids(0))


@pytest.mark.parametrize("share", [0.01, 0.99])
@pytest.mark.parametrize("count", [2, 3])
def test_few_documents_are_in_both_splits(settings, tmp_path, caplog, share, count):
    (tmp_path / "in").mkdir()
    for i in range(count):
        (tmp_path / "in" / f"{i}.txt").write_text(f"document {i} " * 20)
    with caplog.at_level(logging.WARNING):
        corpus = text(settings, tmp_path / "in", held_out=share)
    sizes = (len(corpus.train), len(corpus.validation))
    assert sizes == ((count - 1, 1) if share == 0.01 else (1, count - 1))
    assert f"puts all of {count} documents into one split" in caplog.text
    assert len({*names(corpus.train), *names(corpus.validation)}) == count


def test_a_held_out_path(settings, folder, caplog):
    """As of WikiText and enwik8, which come with a split; what lies in both is held out."""
    with caplog.at_level(logging.WARNING):
        corpus = text(
            settings, folder, validation_path=[str(folder / "a"), str(folder / "b/1.txt")]
        )
    assert "21 files of data.path are held out" in caplog.text
    assert names(corpus.train) == sorted(f"b/{i}.txt" for i in range(3, 40, 2))
    assert names(corpus.validation) == sorted(["1.txt", *(f"{i}.txt" for i in range(0, 40, 2))])
    with pytest.raises(DataError, match="data.path and data.validation_path hold the same files"):
        text(settings, folder / "a", validation_path=str(folder))
    with pytest.raises(DataError, match=r"data.validation_path=.*nowhere does not exist"):
        text(settings, folder, validation_path=str(folder / "nowhere"))


def test_links_are_followed_once(settings, folder, tmp_path, caplog):
    (tmp_path / "far" / "deep").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "far" / "deep" / f"far{i}.txt").write_text(f"far {i} " * 30)
    (folder / "far").symlink_to(tmp_path / "far")
    (folder / "again").symlink_to(tmp_path / "far")
    (folder / "cycle").symlink_to(folder)
    (tmp_path / "far" / "up").symlink_to(folder / "a")
    (folder / "same.txt").symlink_to(folder / "a" / "0.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    (folder / "self").symlink_to(folder / "self")
    os.mkfifo(folder / "pipe.txt")
    (folder / "zero.py").symlink_to("/dev/zero")
    (folder / ".hidden").write_text("hidden")
    with caplog.at_level(logging.INFO):
        corpus = text(settings, folder)
    found = names(corpus.train) + names(corpus.validation)
    expected = [f"{'ab'[i % 2]}/{i}.txt" for i in range(40)]
    place = "again" if any(name.startswith("again") for name in found) else "far"
    assert sorted(found) == sorted(expected + [f"{place}/deep/far{i}.txt" for i in range(4)])
    assert "4 left out, linked to and read already" in caplog.text
    assert "2 left out, neither file nor folder" in caplog.text
    assert "2 left out, not readable, or links to nothing" in caplog.text
    assert "gone.txt (No such file" in caplog.text
    assert "1 left out, hidden: .hidden" in caplog.text


def test_a_name_that_is_not_utf8_is_spelled_in_ascii(settings, folder):
    os.rename(folder / "a" / "0.txt", os.fsencode(folder) + b"/b\xff.txt")
    corpus = text(settings, folder)
    assert r"b\xff.txt" in names(corpus.train) + names(corpus.validation)
    json.dumps(names(corpus.train), ensure_ascii=False).encode()


def test_a_repository_name_need_not_be_valid(settings, tmp_path):
    rows = [f'{{"repo_name": "u/\\ud800{i}", "code": "{"text " * 9}{i}"}}' for i in range(40)]
    (tmp_path / "g.jsonl").write_text("\n".join(rows))
    options = {"vocab_size": 270, "min_tokens": 2, "held_out": 0.4}
    corpus = build_corpus(settings("github", path=str(tmp_path / "g.jsonl"), **options))
    assert len(corpus.train) + len(corpus.validation) == 40


def flipped(path, rng):
    data = bytearray(path.read_bytes())
    place = rng.randrange(len(data) * 8)
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def test_a_flipped_bit_in_the_cache_is_noticed(settings, folder, tmp_path, caplog):
    wanted = text(settings, folder)
    ids = all_ids(wanted.train)
    rng = random.Random(0)
    files = [p for p in (tmp_path / "cache").rglob("*") if p.is_file()]
    assert {p.name for p in files} >= {"tokens.bin", "offsets.npy", "meta.json"}
    for file in files:
        for _ in range(8):
            flipped(file, rng)
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                again = text(settings, folder)
            assert "is damaged" in caplog.text, file
            assert (again.digest, all_ids(again.train)) == (wanted.digest, ids)
            assert again.vocabulary == wanted.vocabulary


def test_a_list_of_paths_is_read_and_a_name_twice_refused(settings, folder):
    both = [str(folder / "a"), str(folder / "b")]
    corpus = build_corpus(settings("text", path=both, vocab_size=280))
    assert len(corpus.train) + len(corpus.validation) == 40
    (folder / "b" / "0.txt").touch()
    with pytest.raises(DataError, match="data.path names 0.txt twice"):
        build_corpus(settings("text", path=both, vocab_size=280))


def test_rows_are_split_one_by_one(settings, tmp_path):
    rows = [{"content": f"row number {i} " * 3} for i in range(50)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    corpus = text(settings, path, held_out=0.3)
    found = names(corpus.train) + names(corpus.validation)
    assert sorted(found) == sorted(f"rows.jsonl:{i}" for i in range(1, 51))
    assert len(corpus.validation) > 3


def test_a_line_of_megabytes(settings, tmp_path):
    (tmp_path / "in").mkdir()
    for name in "ab":
        (tmp_path / "in" / f"{name}.txt").write_text("word " * 80_000, "utf-8")
    corpus = text(settings, tmp_path / "in", held_out=0.5)
    assert corpus.token_bytes is not None
    assert corpus.token_bytes[corpus.train.ids(0)].sum() == 400_000


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("UNIMEM_CACHE", raising=False)
    assert cache_folder(None) == tmp_path / ".cache" / "unimem"
    monkeypatch.setenv("UNIMEM_CACHE", str(tmp_path / "env"))
    assert cache_folder(None) == tmp_path / "env"
    assert cache_folder("~/given") == tmp_path / "given"


def books(folder, suffix=".txt"):
    for split, count in [("train", 4), ("validation", 2), ("test", 3)]:
        (folder / split).mkdir(parents=True)
        for i in range(count):
            (folder / split / f"{i}{suffix}").write_text(f"{split} {i} " * 9, "utf-8")


def saved_dataset(tmp_path, kind):
    """A local data set of 40 rows, as `datasets` and as people keep them."""
    rows = {"id": list(range(40)), "text": [f"row {i} " * 9 for i in range(40)]}
    folder = tmp_path / kind
    if kind in ("dataset", "dict"):
        dataset = Dataset.from_dict(rows)
        held = Dataset.from_dict({"id": [0], "text": ["held out " * 9]})
        saved = dataset if kind == "dataset" else DatasetDict({"train": dataset, "test": held})
        saved.save_to_disk(folder)
        return folder
    folder.mkdir()
    for split, columns in [("train", rows), ("test", {"id": [0], "text": ["held out " * 9]})]:
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}.parquet")
        else:
            lines = [{"id": i, "text": t} for i, t in zip(*columns.values(), strict=True)]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def hf(settings, folder, **values):
    given = {"repository": str(folder), "vocab_size": 280, "held_out": 0.3} | values
    return build_corpus(settings("hf", **given))


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("kind", ["dict", "parquet", "jsonl"])
def test_a_local_data_set_with_its_own_split(settings, tmp_path, monkeypatch, kind, streaming):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf"))
    folder = saved_dataset(tmp_path, kind)
    corpus = hf(settings, folder, validation_split="test", streaming=streaming)
    assert (len(corpus.train), names(corpus.validation)) == (40, ["test:1"])
    assert texts_of(corpus, corpus.validation) == ["held out " * 9]


@pytest.mark.parametrize("kind", ["dataset", "dict", "parquet"])
def test_a_share_of_the_rows_of_a_data_set_is_held_out(settings, tmp_path, kind):
    corpus = hf(settings, saved_dataset(tmp_path, kind))
    found = names(corpus.train) + names(corpus.validation)
    assert sorted(found) == sorted(f"train:{i}" for i in range(1, 41))
    assert 3 < len(corpus.validation) < 25


def test_a_data_set_is_read_again_when_it_changed(settings, tmp_path):
    folder = saved_dataset(tmp_path, "jsonl")
    before = hf(settings, folder).digest
    assert hf(settings, folder).digest == before
    with (folder / "train.jsonl").open("a") as file:
        file.write('\n{"id": 40, "text": "one more one more"}')
    assert hf(settings, folder).digest != before


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("dict", {"split": "nope"}, "has no split nope; it has train, test"),
        ("dataset", {"validation_split": "test"}, "no splits: give data.validation_split=null"),
        ("parquet", {"split": "nope"}, r"cannot be read .*nope.*check data.repository="),
        ("parquet", {"text_column": "body"}, r"has no column body \(it has id, text\)"),
        ("jsonl", {"config": "nope"}, r"cannot be read .*nope"),
        ("gone/deep/down", {}, "there is no such folder"),
    ],
)
def test_a_mistake_in_a_data_set_is_named(settings, tmp_path, kind, values, message):
    folder = tmp_path / kind if "/" in kind else saved_dataset(tmp_path, kind)
    with pytest.raises(DataError, match=message):
        hf(settings, folder, **values)


def test_pg19_keeps_its_own_split(settings, tmp_path):
    books(tmp_path / "pg19")
    options = {"path": str(tmp_path / "pg19"), "vocab_size": 280, "min_tokens": 2}
    corpus = build_corpus(settings("pg19", **options))
    assert (len(corpus.train), len(corpus.validation)) == (4, 2)
    corpus = build_corpus(settings("pg19", validation_split="test", **options))
    assert names(corpus.validation) == ["test/0.txt", "test/1.txt", "test/2.txt"]


def test_pg19_without_a_split_is_named(settings, tmp_path):
    books(tmp_path / "pg19")
    (tmp_path / "pg19" / "test").rename(tmp_path / "only")
    with pytest.raises(DataError, match="has no file for train and validation: put the books into"):
        build_corpus(settings("pg19", path=str(tmp_path / "only")))
    with pytest.raises(DataError, match="has no file for test: "):
        build_corpus(settings("pg19", path=str(tmp_path / "pg19"), validation_split="test"))


def test_github_keeps_a_repository_together(settings, tmp_path):
    rows = [{"repo_name": f"u/r{i % 9}", "code": f"r{i % 9} file {i} " * 9} for i in range(90)]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    options = {"vocab_size": 280, "min_tokens": 2, "held_out": 0.4}
    corpus = build_corpus(settings("github", path=str(tmp_path / "g.jsonl"), **options))
    sides = [
        {(int(name.split(":")[1]) - 1) % 9 for name in names(documents)}
        for documents in (corpus.train, corpus.validation)
    ]
    assert sides[0] | sides[1] == set(range(9)) and not sides[0] & sides[1]


def test_hub_rows_are_streamed(settings, tmp_path):
    """`datasets` reads a local folder the way it reads a repository of the hub."""
    data = tmp_path / "repository" / "data"
    data.mkdir(parents=True)
    for split, count in [("train", 5), ("validation", 2)]:
        table = pyarrow.table({"text": [f"{split} {i} " * 9 for i in range(count)]})
        pyarrow.parquet.write_table(table, data / f"{split}-00000-of-00001.parquet")
    options = {"vocab_size": 280, "min_tokens": 2, "train_documents": 3}
    commit = "0" * 40
    corpus = build_corpus(
        settings("pg19", repository=str(tmp_path / "repository"), revision=commit, **options)
    )
    assert names(corpus.train) == ["train:1", "train:2", "train:3"]
    assert names(corpus.validation) == ["validation:1", "validation:2"]


@pytest.mark.parametrize("revision", [None, "0" * 40])
@pytest.mark.parametrize("kind", ["pg19", "github", "hf"])
def test_a_hub_out_of_reach_is_one_clear_line(settings, kind, revision):
    values = {"repository": "u/d"} if kind == "hf" else {}
    with pytest.raises(DataError, match=r"data.repository=.* cannot be read .*data.\w+=") as error:
        build_corpus(settings(kind, revision=revision, **values))
    assert "\n" not in str(error.value)


KILLED = """
import json, sys
from pydantic import TypeAdapter
from unimem.data.build import build_corpus
from unimem.data.settings import DataSettings
build_corpus(TypeAdapter(DataSettings).validate_python(json.loads(sys.argv[1])))
"""


@pytest.mark.slow
def test_killed_at_any_time_the_next_build_is_the_same(settings, folder, tmp_path):
    for i in range(300):
        (folder / f"{i}.md").write_text(" ".join(map(str, range(i, i + 5000))), "utf-8")
    wanted = build_corpus(settings("text", path=str(folder), cache=str(tmp_path / "clean")))
    killed = settings("text", path=str(folder))
    tokens = tmp_path / "cache" / "tokens"
    delays = random.Random(0)
    kills = 0
    for _ in range(6):
        with subprocess.Popen([sys.executable, "-c", KILLED, killed.model_dump_json()]) as process:
            while process.poll() is None and not list(tokens.glob("*.*")):
                time.sleep(0.01)
            time.sleep(delays.uniform(0, 0.5))
            process.kill()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    corpus = build_corpus(killed)
    assert corpus.digest == wanted.digest
    assert len(os.listdir(tokens)) == 2
    np.testing.assert_array_equal(corpus.train.ids(0), wanted.train.ids(0))
