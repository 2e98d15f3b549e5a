"""Which held-out documents are read, and how far."""

from typing import final

import numpy as np

from unimem.data.documents import Documents


@final
class Sample:
    """`count` documents, evenly spaced, each cut at `max_tokens`; itself `Documents`.

    Documents come sorted by name, so that the first ones are kin; evenly spaced ones are not.
    None reads all documents, or the whole of each.
    """

    def __init__(self, documents: Documents, count: int | None, max_tokens: int | None):
        total = len(documents)
        kept = total if count is None else min(count, total)
        self._documents = documents
        self._max_tokens = max_tokens
        self.index = [i * total // kept for i in range(kept)]
        """Where each document stands among those it was chosen from."""

    @classmethod
    def of(cls, documents: Documents, index: list[int], max_tokens: int | None) -> "Sample":
        """Return the documents that stand at `index`, each cut at `max_tokens`."""
        made = cls(documents, None, max_tokens)
        made.index = index
        return made

    def __len__(self) -> int:
        return len(self.index)

    def ids(self, i: int) -> np.ndarray:
        """Return the token ids of document `i`: `[length(i)]`, int64."""
        return self._documents.ids(self.index[i])[: self._max_tokens]

    def length(self, i: int) -> int:
        """Return the number of tokens of document `i`, without reading them."""
        length = self._documents.length(self.index[i])
        return length if self._max_tokens is None else min(length, self._max_tokens)

    def name(self, i: int) -> str:
        """Return the name of document `i`."""
        return self._documents.name(self.index[i])
