"""Any data set of the Hugging Face hub, or a local one of the library `datasets`."""

from pathlib import Path

from unimem.data.documents import DataError
from unimem.data.formats import Record
from unimem.data.hub import HubSource
from unimem.data.settings import HFSettings
from unimem.data.sources import Split, held_out


def hf_source(settings: HFSettings) -> HubSource:
    """Take the splits that the data set has, or hold out a share of the rows of one.

    Raises:
        DataError: the repository is a path where no folder is.
    """
    name = settings.repository
    path = Path(name).expanduser()
    if path.is_file():
        raise DataError(f"data.repository={name} is a file: use data=text data.path={name}")
    if not path.is_dir() and (path.is_absolute() or name.count("/") > 1 or name[0] in ".~"):
        raise DataError(f"data.repository={name}: there is no such folder")
    validation = settings.validation_split

    def assign(record: Record) -> Split:
        if validation is None:
            return held_out(record.name, settings.held_out)
        return "validation" if record.name.startswith(f"{validation}:") else "train"

    return HubSource(
        repository=settings.repository,
        config=settings.config,
        revision=settings.revision,
        hub_splits={"train": settings.split, "validation": validation or settings.split},
        text_column=settings.text_column,
        assign=assign,
        streaming=settings.streaming,
        remedy=(
            "check data.repository=, data.config= and data.split=, or give a local folder; "
            "without a network, the commit of a cached one with data.revision="
        ),
    )
