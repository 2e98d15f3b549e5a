"""What a corpus is to its users: documents of token ids, and what is known about them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from unimem.words import counted

if TYPE_CHECKING:
    from unimem.data.tokenizer import Tokenizer

VOCABULARY = "unimem_vocabulary"
"""Entry of a model's `config.json`: the `Corpus.vocabulary` that its weights were trained with."""


class DataError(ValueError):
    """The data the user asked for cannot be used; the message says why and what to do."""


def trained_vocabulary(folder: Path) -> str | None:
    """Return the `Corpus.vocabulary` that weights were trained with, where a run recorded it."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    trained = config.get(VOCABULARY) if isinstance(config, dict) else None
    return trained if isinstance(trained, str) else None


class Documents(Protocol):
    """A sequence of documents, each a sequence of token ids."""

    def __len__(self) -> int:
        """Return the number of documents."""
        ...

    def ids(self, i: int) -> np.ndarray:
        """Return the token ids of document `i`: `[length(i)]`, int64."""
        ...

    def length(self, i: int) -> int:
        """Return the number of tokens of document `i`, without reading them."""
        ...

    def name(self, i: int) -> str:
        """Return the name of document `i`, unique within the corpus."""
        ...


class _NoDocuments:
    """An empty sequence of documents."""

    def __len__(self) -> int:
        return 0

    def ids(self, i: int) -> np.ndarray:
        raise IndexError(i)

    def length(self, i: int) -> int:
        raise IndexError(i)

    def name(self, i: int) -> str:
        raise IndexError(i)


NO_DOCUMENTS: Documents = _NoDocuments()


class Oracle(Protocol):
    """The best prediction that the visible tokens allow, for corpora whose law is known."""

    def nll(self, ids: np.ndarray, segment_length: int, memory: int | None) -> np.ndarray:
        """Return the negative log-likelihood of every token of one document.

        Token t is predicted at position t - 1, hence with what *that* position sees: the tokens of
        its own segment up to itself, and the `memory` tokens before that segment's start. So the
        first token of a segment is predicted with the context of the segment before. Token 0 is
        predicted from nothing.

        `memory=0` bounds every model without memory, whatever its depth. A larger `memory` bounds
        the models that see no more than those tokens; a memory of M tokens in each of several
        layers can carry information from further back than M, up to M for every layer.

        Args:
            ids: token ids of one whole document, `[n]`.
            segment_length: tokens in a segment.
            memory: visible tokens before the segment; None for all of them.

        Returns:
            nats per token, float64 `[n]`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Documents to train on, documents held out, and what they are made of.

    Attributes:
        name: the kind of corpus.
        train: documents to train on.
        validation: held-out documents.
        vocab_size: every token id is below it.
        digest: sha256 of the content (hexadecimal).
        token_bytes: UTF-8 bytes of text behind each token id, `[vocab_size]`, for bits per byte;
            None where tokens are not text.
        tokenizer: what made the token ids; None where tokens are not text.
        oracle: the best possible loss; None where it is not known.
        skipped: what was left out, by split and reason, and how often.
    """

    name: str
    train: Documents
    validation: Documents
    vocab_size: int
    digest: str
    token_bytes: np.ndarray | None
    tokenizer: "Tokenizer | None"
    oracle: Oracle | None
    skipped: dict[str, int]

    @property
    def vocabulary(self) -> str:
        """Return what the token ids stand for; equal where weights of one fit the other corpus.

        The tokenizer's digest, or kind and size where tokens are not text.
        """
        if self.tokenizer is None:
            return f"{self.name} of {self.vocab_size}"
        return f"tokenizer {self.tokenizer.digest}"

    def summary(self) -> str:
        """Return one line: sizes, vocabulary, digest and what was left out."""
        parts = [f"{_size(self.train)} to train on"] if len(self.train) else []
        parts.append(f"{_size(self.validation)} held out")
        parts += [f"vocabulary {self.vocab_size}", f"digest {self.digest[:12]}"]
        parts += [f"{count} {reason}" for reason, count in self.skipped.items()]
        return f"{self.name}: " + ", ".join(parts)


def _size(documents: Documents) -> str:
    tokens = sum(documents.length(i) for i in range(len(documents)))
    return f"{counted(len(documents), 'document')} of {tokens} tokens"
