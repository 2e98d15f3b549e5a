"""Where text comes from: files on this machine, or a repository of the hub."""

import hashlib
import logging
import os
from collections import Counter, defaultdict
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
    suffix_of,
)

logger = logging.getLogger(__name__)

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")
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

    def example(self) -> str:
        """Return the first document left out with what is special about it; empty if none was."""
        return next((f", first {names[0]}" for names in self._first.values()), "")

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
    return "validation" if fraction_of(group) < share else "train"


def fraction_of(group: str) -> float:
    """Return the place of a group in 0..1, by a hash of its name; the lowest are held out first."""
    name = group.encode("utf-8", "backslashreplace")
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) / 2**64


def may_be_long_enough(text: Text, min_tokens: int) -> bool:
    """Return whether a text can have so many tokens: one for each byte, and that of the begin."""
    return len(text.text) >= min_tokens or len(text.text.encode("utf-8")) + 1 >= min_tokens


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
        text_column: where files have rows; None to find it.
        assign: the split of each record.
        rule: what decides the splits beside the settings.
    """

    files: Mapping[str, Path]
    text_column: str | None = None
    assign: Assign
    rule: str = ""

    def digest(self) -> str:
        """Return the sha256 of all names and contents."""
        digest = hashlib.sha256(self.rule.encode("utf-8", "backslashreplace"))
        for name, path in self.files.items():
            digest.update(f"{name}\0{file_digest(path)}\0".encode())
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


def find_files(paths: Iterable[Path], setting: str = "data.path") -> dict[str, Path]:
    """Find the files of text in `paths`, folders and files, by their names, sorted.

    A file in a folder is called by its path in the folder. Links are followed; a file or folder
    that several lead to is read once. What is left out is named in a line. A file that is named
    itself may have no suffix; it is plain text then.

    Args:
        paths: files and folders.
        setting: name of the setting that holds them, for messages.

    Raises:
        DataError: a path does not exist, has no known format, or holds no file of text.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            files = {_printable(str(p.relative_to(path))): p for p in _walk(path)}
            texts = {name: p for name, p in files.items() if is_text_file(p)}
        elif path.is_file():
            files = {_printable(path.name): path}
            texts = files if is_text_file(path) or _is_text_without_suffix(path) else {}
        elif path.exists():
            raise DataError(f"{setting}={path} is neither a file nor a folder")
        else:
            raise DataError(f"{setting}={path} does not exist")
        others = sorted(files.keys() - texts.keys())
        if not texts:
            raise DataError(
                f"{setting}={path} holds no file of text ({' '.join(PLAIN + ROWS)}, each also with "
                f"{' '.join(COMPRESSED)}; it has {len(files)} of other kinds{_first(others)})"
            )
        if others:
            logger.warning(
                "%s: %d files of other formats%s; read are %s",
                path, len(others), _first(others), " ".join(PLAIN + ROWS),
            )  # fmt: skip
        if twice := found.keys() & texts.keys():
            raise DataError(f"{setting} names {sorted(twice)[0]} twice: name a folder above both")
        found |= texts
    return dict(sorted(found.items()))


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder: those that lie there, then those behind links.

    One line is logged for each reason to leave something out.
    """
    left_out: defaultdict[str, list[str]] = defaultdict(list)
    read: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        path = folders.pop() if folders else links.pop()
        try:
            state = path.stat()
            identity = (state.st_dev, state.st_ino)
            again = path.is_dir() or (path.is_symlink() and path != folder)
            if again and identity in read:
                left_out["linked to and read already"].append(str(path.relative_to(folder)))
            elif path.is_dir():
                read.add(identity)
                inside = sorted(path.iterdir(), reverse=True)
                shown = [p for p in inside if not p.name.startswith(".")]
                hidden = [p for p in inside if p.name.startswith(".")]
                left_out["hidden"] += [str(p.relative_to(folder)) for p in reversed(hidden)]
                links += [p for p in shown if p.is_symlink()]
                folders += [p for p in shown if not p.is_symlink()]
            elif path.is_file():
                read.add(identity)
                yield path
            else:
                left_out["neither file nor folder"].append(str(path.relative_to(folder)))
        except OSError as error:
            what = f"{path.relative_to(folder)} ({error.strerror})"
            left_out["not readable, or links to nothing"].append(what)
    for reason, names in left_out.items():
        if names:
            level = logging.INFO if reason == "hidden" else logging.WARNING
            shown = _first([_printable(name) for name in names])
            logger.log(level, "%s: %d left out, %s%s", folder, len(names), reason, shown)


def _printable(name: str) -> str:
    """Spell the bytes of a file name that are not UTF-8 as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _first(names: list[str]) -> str:
    return f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" if names else ""


def _is_text_without_suffix(path: Path) -> bool:
    if suffix_of(path):
        return False
    if path.suffix.lower() in COMPRESSED:
        return True
    with path.open("rb") as file:
        return b"\0" not in file.read(1 << 16)


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, or that it is not readable."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "not readable"
