"""The user's own files and folders."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from unimem.data.documents import DataError
from unimem.data.formats import Record
from unimem.data.settings import TextSettings
from unimem.data.sources import (
    SPLITS,
    FileSource,
    Skips,
    Source,
    Split,
    Text,
    find_files,
    fraction_of,
    held_out,
    may_be_long_enough,
)

logger = logging.getLogger(__name__)

PARTS = 20
"""Documents that a corpus of a single text is cut into, unless `document_tokens` cuts it."""


def text_source(settings: TextSettings) -> Source:
    """Find the files, and split their documents by name; a single text is split by place.

    Raises:
        DataError: a path holds no text.
    """
    files = _files(settings.path, "data.path")
    if settings.validation_path is not None:
        return _with_validation(settings, files)

    def assign(record: Record) -> Split:
        return held_out(record.name, settings.held_out)

    source = FileSource(files=files, text_column=settings.text_column, assign=assign)
    return _with_both_splits(settings, source)


def _files(paths: str | list[str], setting: str) -> dict[str, Path]:
    several = [paths] if isinstance(paths, str) else paths
    return find_files([Path(path).expanduser() for path in several], setting)


def _with_validation(settings: TextSettings, files: dict[str, Path]) -> "PairSource":
    """Hold out what lies at a path of its own."""
    assert settings.validation_path is not None
    held = _files(settings.validation_path, "data.validation_path")
    places = {path.resolve() for path in held.values()}
    train = {name: path for name, path in files.items() if path.resolve() not in places}
    if not train:
        raise DataError("data.path and data.validation_path hold the same files: name others")
    if both := len(files) - len(train):
        logger.warning("%d files of data.path are held out: data.validation_path has them", both)
    return PairSource(
        train=FileSource(
            files=train, text_column=settings.text_column, assign=lambda record: "train"
        ),
        validation=FileSource(
            files=held, text_column=settings.text_column, assign=lambda record: "validation"
        ),
    )


def _with_both_splits(settings: TextSettings, source: FileSource) -> Source:
    """Return the source, with a document in each split if there are two, or parts of the only one.

    The hash of the names may put few documents all into one split.
    """

    def usable(split: Split) -> Iterator[str]:
        for text in source.texts(split, Skips()):
            if may_be_long_enough(text, settings.min_tokens):
                yield text.name

    if all(next(usable(split), None) is not None for split in SPLITS):
        return source
    names = [name for split in SPLITS for name in usable(split)]
    match names:
        case []:
            return source  # that nothing is usable is told with the reasons
        case [name]:
            parts = 1 if settings.document_tokens is not None else PARTS
            return PartSource(source=source, name=name, share=settings.held_out, parts=parts)
    inside, ordered = source.assign, sorted(names, key=fraction_of)
    moved: Split = "train" if inside(Record(names[0])) == "validation" else "validation"
    chosen = ordered[0] if moved == "validation" else ordered[-1]
    logger.warning(
        "data.held_out=%s puts all of %d documents into one split; %s is moved to the other, %s",
        settings.held_out,
        len(names),
        chosen,
        moved,
    )

    def assign(record: Record) -> Split | None:
        return moved if record.name == chosen else inside(record)

    return replace(source, assign=assign, rule=f"{chosen} {moved}")


@final
@dataclass(frozen=True, kw_only=True)
class PairSource:
    """Two sources, of which each is one split."""

    train: FileSource
    validation: FileSource

    def digest(self) -> str:
        """Return the sha256 of both digests."""
        both = f"{self.train.digest()} {self.validation.digest()}"
        return hashlib.sha256(both.encode()).hexdigest()

    def total(self, split: Split) -> int | None:
        """Return the number of documents of a split; None if unknown."""
        return self._of(split).total(split)

    def texts(self, split: Split, skips: Skips) -> Iterator[Text]:
        """Yield the documents of one split."""
        return self._of(split).texts(split, skips)

    def _of(self, split: Split) -> FileSource:
        return self.train if split == "train" else self.validation


@final
@dataclass(frozen=True, kw_only=True)
class PartSource:
    """The parts of a single text: the first to train on, the last held out.

    Attributes:
        source: in which the text is the only usable document.
        name: of the text.
        share: of the text that is held out.
        parts: documents that the text is cut into; 1 for one in each split.
    """

    source: FileSource
    name: str
    share: float
    parts: int

    def digest(self) -> str:
        """Return the sha256 of the content and of how it is cut."""
        rule = f"{self.source.digest()} {self.name} {self.share} {self.parts}"
        return hashlib.sha256(rule.encode("utf-8", "backslashreplace")).hexdigest()

    def total(self, split: Split) -> int | None:
        """Return the number of documents of a split."""
        first = self._held_from()
        return first if split == "train" else max(self.parts, 2) - first

    def texts(self, split: Split, skips: Skips) -> Iterator[Text]:
        """Yield the parts of one split, called after the characters that they hold."""
        for side in SPLITS:
            # What else there is, and is not usable, is counted once.
            for text in self.source.texts(side, skips if split == "train" else Skips()):
                if text.name == self.name:
                    yield from self._parts(text.text, split)
                elif split == "train":
                    yield text

    def _held_from(self) -> int:
        """Return the number of parts to train on."""
        if self.parts == 1:
            return 1
        return min(max(1, self.parts - round(self.share * self.parts)), self.parts - 1)

    def _parts(self, text: str, split: Split) -> Iterator[Text]:
        if self.parts == 1:
            places = [0, _border(text, round(len(text) * (1 - self.share))), len(text)]
        else:
            size = len(text) / self.parts
            places = [_border(text, round(i * size)) for i in range(self.parts)] + [len(text)]
        first = self._held_from()
        held = len(places) - 1 - first
        if split == "train":
            logger.warning(
                "%s is one text: cut into %d documents, of which the last %d, from character %d of "
                "%d on, %s held out; data.document_tokens= sets another length, "
                "data.validation_path= another text to hold out",
                self.name,
                len(places) - 1,
                held,
                places[first],
                len(text),
                "is" if held == 1 else "are",
            )
        chosen = range(first) if split == "train" else range(first, len(places) - 1)
        for i in chosen:
            begin, end = places[i], places[i + 1]
            if begin < end:
                yield Text(f"{self.name}[{begin}:{end}]", text[begin:end])


def _border(text: str, place: int) -> int:
    """Return the nearest place before `place` that follows a line end, or else a space."""
    if not 0 < place < len(text):
        return max(place, 0)
    lowest = max(0, place - 1000)
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, lowest, place)
        if found > lowest:
            return found + len(mark)
    return place
