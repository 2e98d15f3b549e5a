"""Data sets of the Hugging Face hub, and local ones of the library `datasets`."""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from unimem.data.documents import DataError
from unimem.data.formats import REPOSITORY_COLUMN, columns_of, records_of_rows, spelled
from unimem.data.sources import Assign, Skips, Split, Text, file_digest, usable
from unimem.hub import ask_hub

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Documents that are the rows of a data set.

    Attributes:
        repository: hub id, or a folder: of `save_to_disk`, or of files that `load_dataset` takes.
        config: name of the data set's configuration; None for the only one.
        revision: commit, tag or branch of the hub id; None for the newest commit.
        hub_splits: the data set's split in which the records of each of ours are found.
        text_column: None to find it.
        assign: the split of each record.
        streaming: read rows as they come, instead of downloading the data set first.
        remedy: what to do if the data set cannot be read.
    """

    repository: str
    config: str | None = None
    revision: str | None
    hub_splits: Mapping[Split, str]
    text_column: str | None
    assign: Assign
    streaming: bool = True
    remedy: str = (
        "give a local copy with data.path=, or the commit of a cached one with data.revision="
    )

    def digest(self) -> str:
        """Return what stands for the content: repository and commit, or the sha256 of a folder.

        Raises:
            DataError: the hub or the repository cannot be reached.
        """
        return f"{self.repository}@{self._commit}" if self._folder is None else self._content

    @cached_property
    def _folder(self) -> Path | None:
        path = Path(self.repository).expanduser()
        return path if path.is_dir() else None

    @cached_property
    def _content(self) -> str:
        """Return the sha256 of the files in a folder that are not hidden."""
        assert self._folder is not None
        digest = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder)
            if path.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name}\0{file_digest(path)}\0".encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    @cached_property
    def _commit(self) -> str:
        """Ask the hub, unless the revision is a commit already."""
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        ask_hub()
        try:
            commit = HfApi().dataset_info(self.repository, revision=self.revision).sha
        except Exception as error:  # the hub's client raises its own, httpx's and OSError
            raise self._unreadable(error) from error
        logger.info("%s: commit %s; pin it with data.revision=", self.repository, commit)
        return str(commit)

    def total(self, split: Split) -> int | None:
        """Return None: the hub need not say."""
        return None

    def texts(self, split: Split, skips: Skips) -> Iterator[Text]:
        """Yield the documents of one split, called after the hub's split and the row's number.

        Raises:
            DataError: the hub or the repository cannot be reached.
        """
        hub_split = self.hub_splits[split]
        try:
            rows = self._with_text_only(self._load(hub_split))
            records = records_of_rows(rows, hub_split, self.text_column)
            yield from usable(records, split, self.assign, skips)
        except DataError:
            raise
        except Exception as error:  # as above, and those of datasets
            raise self._unreadable(error) from error

    def _load(self, hub_split: str) -> Any:
        """Return the rows of a split: a `Dataset`, or an `IterableDataset` that streams."""
        # Slow to import.
        from datasets import config, load_dataset

        if self._folder is None:
            ask_hub()
        elif any((self._folder / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return self._saved(self._folder, hub_split)
        config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would count local folders too, on the hub
        return load_dataset(
            self.repository if self._folder is None else str(self._folder),
            self.config,
            split=hub_split,
            revision=self._commit if self._folder is None else None,
            streaming=self.streaming,
        )

    def _saved(self, folder: Path, hub_split: str) -> Any:
        """Return what `save_to_disk` wrote."""
        from datasets import DatasetDict, load_from_disk

        saved = load_from_disk(str(folder))
        if not isinstance(saved, DatasetDict):
            if len(set(self.hub_splits.values())) == 1:
                return saved
            saved = {}
        if hub_split not in saved:
            splits = ", ".join(map(str, saved)) or "no splits: give data.validation_split=null"
            raise DataError(f"data.repository={folder} has no split {hub_split}; it has {splits}")
        return saved[hub_split]

    def _with_text_only(self, rows: Any) -> Any:
        """Leave out other columns, which `datasets` would decode: images, and what URLs name.

        Raises:
            DataError: no column holds the text.
        """
        names = rows.column_names
        if names is None:  # not known before the first row
            return rows
        columns = columns_of(self.text_column)
        if not any(column in names for column in columns):
            raise DataError(
                f"data.repository={self.repository} has no column {spelled(columns)} (it has "
                f"{', '.join(names)}): name the one that holds the text with data.text_column="
            )
        return rows.select_columns([x for x in (*columns, REPOSITORY_COLUMN) if x in names])

    def _unreadable(self, error: Exception) -> DataError:
        reason = " ".join(str(error).split())[:300]
        return DataError(
            f"data.repository={self.repository} cannot be read "
            f"({type(error).__name__}: {reason}): {self.remedy}"
        )
