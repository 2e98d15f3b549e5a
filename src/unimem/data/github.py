"""Source files of public repositories, split by repository."""

from pathlib import Path

from unimem.data.formats import Record
from unimem.data.hub import HubSource
from unimem.data.settings import GitHubSettings
from unimem.data.sources import FileSource, Source, Split, find_files, held_out


def github_source(settings: GitHubSettings) -> Source:
    """Read a local copy where there is one, else the hub.

    The repository of a document is its field `repo_name`; without one, the folder that it lies in
    within `data.path`.
    """

    def assign(record: Record) -> Split:
        repository = record.repository or Path(record.name).parts[0]
        return held_out(repository, settings.held_out)

    if settings.path is not None:
        files = find_files([Path(settings.path).expanduser()])
        return FileSource(files=files, text_column=settings.text_column, assign=assign)
    return HubSource(
        repository=settings.repository,
        revision=settings.revision,
        hub_splits={"train": "train", "validation": "train"},
        text_column=settings.text_column,
        assign=assign,
    )
