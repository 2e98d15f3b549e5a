"""Books before 1919: PG-19 (Rae et al. 2019), with its own split."""

import re
from pathlib import Path

from unimem.data.documents import DataError
from unimem.data.formats import Record
from unimem.data.hub import HubSource
from unimem.data.settings import PG19Settings
from unimem.data.sources import FileSource, Source, Split, find_files

_HUB_SPLITS = ("train", "validation", "test")


def pg19_source(settings: PG19Settings) -> Source:
    """Read a local copy where there is one, else the hub.

    In a local copy the split of a file is the first word train, validation or test in its path.

    Raises:
        DataError: the local copy lacks a split.
    """
    ours: dict[str, Split] = {"train": "train", settings.validation_split: "validation"}

    def assign(record: Record) -> Split | None:
        words = re.split("[^a-z]+", record.name.lower())
        return ours.get(next((word for word in words if word in _HUB_SPLITS), ""))

    if settings.path is not None:
        files = find_files([Path(settings.path).expanduser()])
        found = {assign(Record(name)) for name in files}
        if missing := [word for word, split in ours.items() if split not in found]:
            raise DataError(
                f"data.path={settings.path} has no file for {' and '.join(missing)}: "
                f"put the books into folders {', '.join(_HUB_SPLITS)}"
            )
        return FileSource(files=files, text_column=settings.text_column, assign=assign)
    return HubSource(
        repository=settings.repository,
        revision=settings.revision,
        hub_splits={"train": "train", "validation": settings.validation_split},
        text_column=settings.text_column,
        assign=assign,
    )
