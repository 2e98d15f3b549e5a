import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unimem.data.documents import DataError
from unimem.data.store import StoreWriter, TokenStore, open_or_build

DOCUMENTS = [np.arange(5), np.array([9, 0, 9]), np.array([7])]


def write(writer: StoreWriter) -> None:
    for i, ids in enumerate(DOCUMENTS):
        writer.add(f"document {i}", ids)
    writer.skipped = {"not UTF-8": 2}


def build(folder: Path, vocab_size: int = 10) -> TokenStore:
    return open_or_build(folder, vocab_size, write)


def check(store: TokenStore) -> None:
    assert len(store) == len(DOCUMENTS)
    for i, ids in enumerate(DOCUMENTS):
        np.testing.assert_array_equal(store.ids(i), ids)
        assert store.ids(i).dtype == np.int64
        assert store.length(i) == len(ids)
        assert store.name(i) == f"document {i}"
    assert store.skipped == {"not UTF-8": 2}


def test_what_was_written_is_read(tmp_path):
    check(build(tmp_path / "deep" / "store"))
    check(TokenStore(tmp_path / "deep" / "store"))
    assert os.listdir(tmp_path / "deep") == ["store"]


@pytest.mark.parametrize(("vocab_size", "size"), [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_they_fit(tmp_path, vocab_size, size):
    top = np.array([0, vocab_size - 1])
    store = open_or_build(tmp_path / "store", vocab_size, lambda writer: writer.add("top", top))
    np.testing.assert_array_equal(store.ids(0), top)
    assert (tmp_path / "store" / "tokens.bin").stat().st_size == 2 * size


def test_an_id_outside_the_vocabulary_is_our_bug(tmp_path):
    with pytest.raises(AssertionError):
        build(tmp_path / "store", vocab_size=9)
    assert os.listdir(tmp_path) == []


def test_a_complete_store_is_not_built_again(tmp_path):
    build(tmp_path / "store")

    def fail(writer: StoreWriter) -> None:
        raise AssertionError("built again")

    check(open_or_build(tmp_path / "store", 10, fail))


def test_digest_is_of_ids_and_borders(tmp_path):
    def digest(name: str, *documents: list[int]) -> str:
        def write(writer: StoreWriter) -> None:
            for ids in documents:
                writer.add("a", np.array(ids))

        return open_or_build(tmp_path / name, 10, write).digest

    same = [digest("1", [1, 2], [3]), digest("2", [1, 2], [3])]
    assert same[0] == same[1]
    assert len({same[0], digest("3", [1], [2, 3]), digest("4", [1, 2], [4])}) == 3


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.npy", "meta.json"])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, None])
def test_a_damaged_store_is_named_and_built_again(tmp_path, caplog, name, share):
    folder = tmp_path / "store"
    build(folder)
    file = folder / name
    if share is None:
        file.unlink()
    else:
        os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(DataError, match="damaged"):
        TokenStore(folder)
    with caplog.at_level(logging.WARNING):
        check(build(folder))
    assert str(folder) in caplog.text and "building it again" in caplog.text
    assert os.listdir(tmp_path) == ["store"]


def test_truncated_tokens_are_told_in_bytes(tmp_path):
    build(tmp_path / "store")
    os.truncate(tmp_path / "store" / "tokens.bin", 10)
    with pytest.raises(DataError, match=r"tokens.bin is damaged: it has 10 bytes and should .* 18"):
        TokenStore(tmp_path / "store")


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from unimem.data.store import open_or_build

def write(writer):
    writer.add("half", np.arange(5))
    print("half", flush=True)
    time.sleep(60)

open_or_build(Path(sys.argv[1]), 10, write)
"""


def test_a_killed_build_leaves_no_store_and_the_next_one_cleans_up(tmp_path):
    folder = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert len(os.listdir(tmp_path)) == 1
    check(build(folder))
    assert os.listdir(tmp_path) == ["store"]


def test_a_build_in_progress_elsewhere_is_left_alone(tmp_path):
    folder = tmp_path / "store"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stdout.readline() == "half\n"
        check(build(folder))
        assert len(os.listdir(tmp_path)) == 2
        process.kill()


def test_who_ends_later_uses_the_store_of_the_other(tmp_path, caplog):
    folder = tmp_path / "store"

    def slow(writer: StoreWriter) -> None:
        write(writer)
        build(folder)
        (folder / "mark").touch()

    with caplog.at_level(logging.INFO):
        check(open_or_build(folder, 10, slow))
    assert "was built by another process" in caplog.text
    assert (folder / "mark").exists()
    assert os.listdir(tmp_path) == ["store"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=r"file cannot be written .*another folder with data.cache="
    ):
        build(tmp_path / "file" / "store")


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from unimem.data.documents import DataError
from unimem.data.store import open_or_build

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    open_or_build(Path(sys.argv[1]), 10, lambda writer: writer.add("a", np.zeros(1000, int)))
except DataError as error:
    print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands for the disk."""
    command = [sys.executable, "-c", FULL, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "cannot be written (File too large): make room there" in done.stdout
    assert done.stderr == "" and os.listdir(tmp_path) == []
