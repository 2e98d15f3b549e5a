"""The user's own files and folders."""

from pathlib import Path

from unimem.data.formats import Record
from unimem.data.settings import TextSettings
from unimem.data.sources import FileSource, Split, find_files, held_out


def text_source(settings: TextSettings) -> FileSource:
    """Find the files, and split their documents by name."""
    paths = [settings.path] if isinstance(settings.path, str) else settings.path

    def assign(record: Record) -> Split:
        return held_out(record.name, settings.held_out)

    files = find_files([Path(path).expanduser() for path in paths])
    return FileSource(files=files, text_column=settings.text_column, assign=assign)
