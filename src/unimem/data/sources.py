"""Where text comes from: files on this machine, or a repository of the hub."""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, final

from unimem.data.documents import DataError
from unimem.data.formats import (
    COMPRESSED,
    PLAIN,
    ROWS,
    Record,
    is_plain,
    is_text_file,
    read_records,
)

logger = logging.getLogger(__name__)

Split = Literal["train", "validation"]
Assign = Callable[[Record], Split | None]
"""Which split a record belongs to; None for neither. A pure function of its name and fields."""


class Text(NamedTuple):
    """One document before it is made of tokens."""

    name: str
    text: str


@final
class Skips:
    """What was left out: how many documents for which reason, and the first of their names."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one document."""
        self.counts[reason] += 1
        if self.counts[reason] <= 3:
            self._first.setdefault(reason, []).append(name)

    def warn(self, where: str) -> None:
        """Log one line per reason."""
        for reason, count in self.counts.items():
            more = ", ..." if count > 3 else ""
            names = ", ".join(self._first[reason])
            logger.warning("%s: %d documents %s: %s%s", where, count, reason, names, more)


class Source(Protocol):
    """Documents of text in two splits."""

    def digest(self) -> str:
        """Return what stands for the content (sha256 or a commit)."""
        ...

    def total(self, split: Split) -> int | None:
        """Return the number of documents, roughly, for a progress bar; None if unknown."""
        ...

    def texts(self, split: Split, skips: Skips) -> Iterator[Text]:
        """Yield the documents of one split, in an order that never changes."""
        ...


def held_out(group: str, share: float) -> Split:
    """Put a group of documents on one side, by a hash of its name alone."""
    fraction = int.from_bytes(hashlib.sha256(group.encode("utf-8")).digest()[:8]) / 2**64
    return "validation" if fraction < share else "train"


def usable(records: Iterable[Record], split: Split, assign: Assign, skips: Skips) -> Iterator[Text]:
    """Yield the texts of one split, and count its records that have none."""
    for record in records:
        if assign(record) != split:
            continue
        if record.problem:
            detail = f" ({record.detail})" if record.detail else ""
            skips.add(record.problem, record.name + detail)
        else:
            yield Text(record.name, record.text)


@final
@dataclass(frozen=True, kw_only=True)
class FileSource:
    """Documents in files.

    Attributes:
        files: path of each file by its name, sorted by name.
        text_column: of jsonl and parquet; None to find it.
        assign: the split of each record.
    """

    files: Mapping[str, Path]
    text_column: str | None = None
    assign: Assign

    def digest(self) -> str:
        """Return the sha256 of all names and contents."""
        digest = hashlib.sha256()
        for name, path in self.files.items():
            digest.update(f"{name}\0{_content_digest(path)}\0".encode())
        return digest.hexdigest()

    def total(self, split: Split) -> int | None:
        """Count the records of plain text files, which need not be read for it."""
        if not all(is_plain(path) for path in self.files.values()):
            return None
        return sum(self.assign(Record(name)) == split for name in self.files)

    def texts(self, split: Split, skips: Skips) -> Iterator[Text]:
        """Yield the documents of one split, by name of file and number of row."""
        for name, path in self.files.items():
            if is_plain(path) and self.assign(Record(name)) != split:
                continue
            yield from usable(read_records(path, name, self.text_column), split, self.assign, skips)


def find_files(paths: Iterable[Path]) -> dict[str, Path]:
    """Find the files of text in `paths`, folders and files, by their names, sorted.

    A file in a folder is called by its path in the folder; hidden files are not looked at.

    Raises:
        DataError: a path does not exist, has no known format, or holds no file of text.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = {str(p.relative_to(path)): p for p in _visible_files(path)}
        elif path.is_file():
            files = {path.name: path}
        else:
            raise DataError(f"data.path={path} does not exist")
        texts = {name: p for name, p in files.items() if is_text_file(p)}
        if not texts:
            raise DataError(
                f"data.path={path} holds no file of text ({' '.join(PLAIN + ROWS)}, each also with "
                f"{' '.join(COMPRESSED)}; it has {len(files)} of other kinds)"
            )
        if others := sorted(files.keys() - texts.keys()):
            logger.warning("%s: %d files of other formats: %s", path, len(others), others[:3])
        if twice := found.keys() & texts.keys():
            raise DataError(f"data.path names {sorted(twice)[0]} twice: name a folder above both")
        found |= texts
    return dict(sorted(found.items()))


def _visible_files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _content_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "not readable"
