"""Books before 1919: PG-19 (Rae et al. 2019), with its own split."""

import re
from pathlib import Path

from unimem.data.formats import Record
from unimem.data.hub import HubSource
from unimem.data.settings import PG19Settings
from unimem.data.sources import FileSource, Source, Split, find_files


def pg19_source(settings: PG19Settings) -> Source:
    """Read a local copy where there is one, else the hub.

    In a local copy the split of a file is the word train, validation or test in its path.
    """

    def assign(record: Record) -> Split | None:
        words = re.split(r"[^a-z0-9]+", record.name.lower())
        if "train" in words:
            return "train"
        return "validation" if settings.validation_split in words else None

    if settings.path is not None:
        files = find_files([Path(settings.path).expanduser()])
        return FileSource(files=files, text_column=settings.text_column, assign=assign)
    return HubSource(
        repository=settings.repository,
        revision=settings.revision,
        hub_splits={"train": "train", "validation": settings.validation_split},
        text_column=settings.text_column,
        assign=assign,
    )
