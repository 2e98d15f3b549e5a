"""Documents that are drawn when they are read, each a pure function of (seed, split, index)."""

import hashlib
from collections.abc import Callable
from typing import Literal, final

import numpy as np

from unimem.data.documents import Corpus, Documents, Oracle
from unimem.data.settings import MarkovSettings, UrnSettings

_STREAM = {"train": 0, "validation": 1}


@final
class GeneratedDocuments:
    """`count` documents of `settings.length` tokens; implements `Documents`."""

    def __init__(
        self,
        split: Literal["train", "validation"],
        count: int,
        settings: MarkovSettings | UrnSettings,
        draw: Callable[[np.random.Generator], np.ndarray],
    ):
        self._split = split
        self._count = count
        self._seed = settings.seed
        self._length = settings.length
        self._draw = draw

    def __len__(self) -> int:
        return self._count

    def ids(self, i: int) -> np.ndarray:
        """Draw document `i`: int64 `[length]`."""
        if not 0 <= i < self._count:
            raise IndexError(f"document {i} of {self._count}")
        return self._draw(np.random.default_rng([self._seed, _STREAM[self._split], i]))

    def length(self, i: int) -> int:
        """Return the number of tokens, the same for every document."""
        return self._length

    def name(self, i: int) -> str:
        """Return split and index."""
        return f"{self._split}-{i}"


def generated_corpus(
    settings: MarkovSettings | UrnSettings,
    vocab_size: int,
    draw: Callable[[np.random.Generator], np.ndarray],
    oracle: Oracle,
) -> Corpus:
    """Build a corpus of documents that `draw` makes and of which `oracle` knows the best loss."""
    train = GeneratedDocuments("train", settings.train_documents, settings, draw)
    validation = GeneratedDocuments("validation", settings.validation_documents, settings, draw)
    return Corpus(
        name=settings.kind,
        train=train,
        validation=validation,
        vocab_size=vocab_size,
        digest=_digest(settings, train, validation),
        token_bytes=None,
        tokenizer=None,
        oracle=oracle,
        skipped={},
    )


def _digest(settings: MarkovSettings | UrnSettings, *splits: Documents) -> str:
    """Digest the law and the first document of every split.

    The documents stand for NumPy's generators, which another version may change.
    """
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for documents in splits:
        digest.update(documents.ids(0).astype("<i8").tobytes())
    return digest.hexdigest()
