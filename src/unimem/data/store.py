"""Token ids of many documents in one flat, memory-mapped file.

A store is a folder: `tokens.bin` (uint16, or uint32 for vocabularies over 65536), `offsets.npy`
(`[documents + 1]`, in tokens) and `meta.json`. It is built in a temporary folder beside its place
and renamed there when every byte is on the disk, so it is complete or absent, whatever is killed.
"""

import hashlib
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np

from unimem.data.documents import DataError

logger = logging.getLogger(__name__)

_verified: set[tuple[Any, ...]] = set()
"""Stores whose content this process compared to their digest."""


@final
class TokenStore:
    """Documents read from a store on the disk; implements `Documents`.

    Args:
        folder: the store.

    Raises:
        DataError: a file is missing or is not as it was written; all of it is compared.
    """

    def __init__(self, folder: Path):
        try:
            meta: dict[str, Any] = json.loads((folder / "meta.json").read_text("utf-8"))
            self._offsets = np.load(folder / "offsets.npy", allow_pickle=False)
            tokens = folder / "tokens.bin"
            self._names: list[str] = meta["names"]
            self.vocab_size: int = meta["vocab_size"]
            self.digest: str = meta["digest"]
            self.skipped: dict[str, int] = meta["skipped"]
            dtype = _dtype(self.vocab_size)
            expected, found = int(self._offsets[-1]) * dtype.itemsize, tokens.stat().st_size
            damaged_meta = meta.pop("check") != _check(meta)
        except Exception as error:  # what json and NumPy raise of damaged files is no closed list
            raise DataError(f"{folder} is damaged: {type(error).__name__}: {error}") from error
        if damaged_meta:
            raise DataError(f"{folder} is damaged: meta.json is not as it was written")
        if self._offsets.shape != (len(self._names) + 1,):
            raise DataError(f"{folder} is damaged: offsets.npy and meta.json disagree")
        if found != expected:
            raise DataError(f"{tokens} is damaged: it has {found} bytes and should have {expected}")
        self._tokens = np.memmap(tokens, dtype=dtype, mode="r")
        self._require_digest(folder)

    def _require_digest(self, folder: Path) -> None:
        """Compare the content to the digest, once in a process unless a file is written again."""
        states = [(folder / name).stat() for name in ("tokens.bin", "offsets.npy")]
        key = (str(folder), self.digest, *((s.st_ino, s.st_mtime_ns, s.st_size) for s in states))
        if key in _verified:
            return
        digest = hashlib.sha256()
        for begin, end in pairwise(self._offsets.tolist()):
            if not 0 <= begin < end <= len(self._tokens):
                raise DataError(f"{folder} is damaged: offsets.npy is not as it was written")
            digest.update((end - begin).to_bytes(8, "little"))
            digest.update(self._tokens[begin:end].data)
        if digest.hexdigest() != self.digest:
            raise DataError(f"{folder} is damaged: the tokens are not those that were written")
        _verified.add(key)

    def __len__(self) -> int:
        return len(self._names)

    def ids(self, i: int) -> np.ndarray:
        """Return the token ids of document `i`, int64 `[length(i)]`."""
        return self._tokens[self._offsets[i] : self._offsets[i + 1]].astype(np.int64)

    def length(self, i: int) -> int:
        """Return the number of tokens of document `i`."""
        return int(self._offsets[i + 1] - self._offsets[i])

    def name(self, i: int) -> str:
        """Return the name of document `i`."""
        return self._names[i]


@final
class StoreWriter:
    """Writes documents one after the other; `skipped` goes into the store as it is at the end."""

    def __init__(self, folder: Path, vocab_size: int):
        self.skipped: dict[str, int] = {}
        self._folder = folder
        self._vocab_size = vocab_size
        self._tokens = (folder / "tokens.bin").open("wb")
        self._digest = hashlib.sha256()
        self._offsets = [0]
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, ids: np.ndarray) -> None:
        """Append one document: `ids` `[n]`, all in 0..vocab_size-1."""
        assert len(ids) and ids.min() >= 0 and ids.max() < self._vocab_size, name
        data = ids.astype(_dtype(self._vocab_size)).tobytes()
        self._tokens.write(data)
        self._digest.update(len(ids).to_bytes(8, "little") + data)
        self._offsets.append(self._offsets[-1] + len(ids))
        self._names.append(name)

    def finish(self) -> None:
        """Write what describes the tokens, and wait until all of it is on the disk."""
        _sync(self._tokens)
        with (self._folder / "offsets.npy").open("wb") as file:
            np.save(file, np.array(self._offsets, dtype=np.int64))
            _sync(file)
        meta: dict[str, Any] = {
            "vocab_size": self._vocab_size,
            "digest": self._digest.hexdigest(),
            "skipped": self.skipped,
            "names": self._names,
        }
        meta["check"] = _check(meta)
        with (self._folder / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file)
            _sync(file)

    def close(self) -> None:
        """Close the file of tokens."""
        self._tokens.close()


def open_or_build(
    folder: Path, vocab_size: int, write: Callable[[StoreWriter], None]
) -> TokenStore:
    """Open the store `folder`; build it with `write` where it is absent or damaged.

    Two processes may build the same store at once: the one that ends later uses the other's.

    Args:
        folder: the store's place; its name must stand for its content.
        vocab_size: number of token ids.
        write: adds the documents; what it raises leaves nothing behind.

    Raises:
        DataError: the folder cannot be written.
    """
    if folder.exists():
        try:
            return TokenStore(folder)
        except DataError as error:
            logger.warning("%s; building it again", error)
            shutil.rmtree(folder, ignore_errors=True)
    try:
        _build(folder, vocab_size, write)
    except OSError as error:
        raise DataError(
            f"{folder.parent} cannot be written ({error.strerror}): "
            "make room there, or name another folder with data.cache="
        ) from error
    return TokenStore(folder)


def _build(folder: Path, vocab_size: int, write: Callable[[StoreWriter], None]) -> None:
    building = temporary_folder(folder)
    try:
        writer = StoreWriter(building, vocab_size)
        try:
            write(writer)
            writer.finish()
        finally:
            writer.close()
        _sync_folder(building)
        try:
            building.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            logger.info("%s was built by another process", folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _check(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta).encode()).hexdigest()


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 65536 else "<u4")


def temporary_folder(folder: Path) -> Path:
    """Make a folder to build what `folder` is to be, and remove those that killed builds left."""
    prefix = f"{folder.name}.{socket.gethostname()}."
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{prefix}*"):
        if not _is_alive(int(left.name.removeprefix(prefix).split(".")[0])):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}.", dir=folder.parent))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
