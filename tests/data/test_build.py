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
    assert "1 files of other formats: ['image.png']" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"data.path=.*in does not exist"),
        (lambda p: p.mkdir(), r"data.path=.*in holds no file of text \(.txt .md .py .jsonl"),
        (lambda p: p.write_bytes(b"MZ"), r"holds no file of text .*it has 1 of other kinds"),
    ],
)
def test_a_path_without_text_is_named(settings, tmp_path, make, message):
    make(tmp_path / "in")
    with pytest.raises(DataError, match=message):
        text(settings, tmp_path / "in")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"no usable documents \(left out: 3 shorter than 2 tokens\)"),
        (b"\xff", r"no usable documents \(left out: 3 not UTF-8\): give more text"),
    ],
)
def test_no_usable_document_is_an_error_that_leaves_nothing(settings, tmp_path, content, message):
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.md").write_bytes(content)
    with pytest.raises(DataError, match=message):
        text(settings, tmp_path / "in", held_out=0.01)
    assert os.listdir(tmp_path / "cache" / "tokens") == []


def test_one_document_cannot_be_split(settings, tmp_path):
    (tmp_path / "one.txt").write_text("only one " * 9, "utf-8")
    with pytest.raises(DataError, match=r"data=text, validation: no usable documents .*hold out"):
        text(settings, tmp_path / "one.txt", held_out=0.01)


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
        (tmp_path / "in" / f"{name}.txt").write_text("word " * 600_000, "utf-8")
    corpus = text(settings, tmp_path / "in", held_out=0.5)
    assert corpus.token_bytes is not None
    assert corpus.token_bytes[corpus.train.ids(0)].sum() == 3_000_000


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
@pytest.mark.parametrize("kind", ["pg19", "github"])
def test_a_hub_out_of_reach_is_one_clear_line(settings, kind, revision):
    with pytest.raises(DataError, match=r"data.repository=.* cannot be read .*data.path=") as error:
        build_corpus(settings(kind, revision=revision))
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
