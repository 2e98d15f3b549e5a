"""Documents in a repository of the Hugging Face hub, streamed."""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import final

from unimem.data.documents import DataError
from unimem.data.formats import records_of_rows
from unimem.data.sources import Assign, Skips, Split, Text, usable

logger = logging.getLogger(__name__)


@final
@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Documents that are the rows of a dataset on the hub.

    Attributes:
        repository: hub id.
        revision: commit, tag or branch; None for the newest commit.
        hub_splits: the hub's split in which the records of each of ours are found.
        text_column: None to find it.
        assign: the split of each record.
    """

    repository: str
    revision: str | None
    hub_splits: Mapping[Split, str]
    text_column: str | None
    assign: Assign

    def digest(self) -> str:
        """Return repository and commit, which stand for the content.

        Raises:
            DataError: the hub or the repository cannot be reached.
        """
        return f"{self.repository}@{self._commit}"

    @cached_property
    def _commit(self) -> str:
        """Ask the hub, unless the revision is a commit already."""
        if self.revision and re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        from huggingface_hub import HfApi

        try:
            commit = HfApi().dataset_info(self.repository, revision=self.revision).sha
        except Exception as error:  # the hub's client raises its own, httpx's and OSError
            raise self._unreachable(error) from error
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
        from datasets import load_dataset

        hub_split = self.hub_splits[split]
        try:
            rows = load_dataset(
                self.repository,
                split=hub_split,
                revision=self._commit,
                streaming=True,
            )
            records = records_of_rows(rows, hub_split, self.text_column)
            yield from usable(records, split, self.assign, skips)
        except DataError:
            raise
        except Exception as error:  # as above, and those of datasets
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> DataError:
        reason = str(error).partition("\n")[0]
        return DataError(
            f"data.repository={self.repository} cannot be read ({type(error).__name__}: {reason}): "
            "give a local copy with data.path=, or the commit of a cached one with data.revision="
        )
