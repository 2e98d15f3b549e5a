"""From the `data` settings to a corpus."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from unimem.data.documents import NO_DOCUMENTS, Corpus, DataError
from unimem.data.github import github_source
from unimem.data.hf import hf_source
from unimem.data.markov import markov_corpus
from unimem.data.pg19 import pg19_source
from unimem.data.progress import progress
from unimem.data.settings import (
    DataSettings,
    GitHubSettings,
    HFSettings,
    MarkovSettings,
    PG19Settings,
    StdlibSettings,
    TextSettings,
    TokenizedSettings,
    UrnSettings,
)
from unimem.data.sources import SPLITS, Skips, Source, Split, may_be_long_enough
from unimem.data.stdlib import stdlib_source
from unimem.data.store import StoreWriter, TokenStore, open_or_build
from unimem.data.text import text_source
from unimem.data.tokenizer import TRAINING_CHARACTERS, Tokenizer, cached_bpe, load_hugging_face
from unimem.data.urn import urn_corpus

logger = logging.getLogger(__name__)

# To be raised when the same source, tokenizer and settings make other tokens than before.
_FORMAT = 2


def build_corpus(settings: DataSettings, *, train: bool = True) -> Corpus:
    """Build the corpus that the settings describe, or open it if it was built before.

    Args:
        settings: of the corpus.
        train: False to leave out the documents to train on, where they are text: `train` is then
            empty, and the digest is that of the held-out documents alone.

    Raises:
        DataError: there is nothing to use; the message says why and what to do.
    """
    match settings:
        case MarkovSettings():
            return markov_corpus(settings)
        case UrnSettings():
            return urn_corpus(settings)
        case StdlibSettings():
            return _text_corpus(settings, stdlib_source(settings), train)
        case TextSettings():
            return _text_corpus(settings, text_source(settings), train)
        case PG19Settings():
            return _text_corpus(settings, pg19_source(settings), train)
        case GitHubSettings():
            return _text_corpus(settings, github_source(settings), train)
        case HFSettings():
            return _text_corpus(settings, hf_source(settings), train)


def cache_folder(cache: str | None) -> Path:
    """Return the folder for tokenizers and tokens: `cache`, $UNIMEM_CACHE or ~/.cache/unimem."""
    return Path(cache or os.environ.get("UNIMEM_CACHE") or "~/.cache/unimem").expanduser()


def _text_corpus(settings: TokenizedSettings, source: Source, train: bool) -> Corpus:
    source_digest = source.digest()
    tokenizer = _tokenizer(settings, source, source_digest)
    stores: dict[Split, TokenStore] = {}
    splits: tuple[Split, ...] = SPLITS if train else ("validation",)
    for split in splits:
        stores[split] = _store(settings, source, source_digest, tokenizer, split)
    if train and len(stores["train"]) == 1:
        logger.warning(
            "data=%s has one document to train on: all rows of a batch read it at the same time; "
            "data.document_tokens= cuts it into several",
            settings.kind,
        )
    return Corpus(
        name=settings.kind,
        train=stores.get("train", NO_DOCUMENTS),
        validation=stores["validation"],
        vocab_size=tokenizer.vocab_size,
        digest=_digest(*(store.digest for store in stores.values())),
        token_bytes=tokenizer.token_bytes,
        tokenizer=tokenizer,
        oracle=None,
        skipped={
            f"{reason} ({split})": count
            for split, store in stores.items()
            for reason, count in store.skipped.items()
        },
    )


def _split_settings(settings: TokenizedSettings) -> dict[str, object]:
    """Return what decides which text is in which split."""
    names = {"held_out", "validation_split", "text_column", "split", "config"}
    return settings.model_dump(include=names)


def _tokenizer(settings: TokenizedSettings, source: Source, source_digest: str) -> Tokenizer:
    if settings.tokenizer != "bpe":
        return load_hugging_face(settings.tokenizer)
    options = [settings.vocab_size, TRAINING_CHARACTERS, _split_settings(settings)]
    file = cache_folder(settings.cache) / "tokenizers" / f"{_digest(source_digest, options)}.json"

    def texts() -> Iterator[str]:
        for split in SPLITS:
            _require_document(settings, source, split)
        # What is left out is counted and named when the tokens are made.
        yield from (text.text for text in source.texts("train", Skips()))

    return cached_bpe(file, texts(), settings.vocab_size)


def _require_document(settings: TokenizedSettings, source: Source, split: Split) -> None:
    """Look for a document of a split, before the minutes that a tokenizer takes.

    Raises:
        DataError: there is none that could be long enough.
    """
    skips = Skips()
    for text in source.texts(split, skips):
        if may_be_long_enough(text, settings.min_tokens):
            return
        skips.add(_too_short(settings), text.name)
    raise DataError(_nothing(f"data={settings.kind}, {split}", skips))


def _too_short(settings: TokenizedSettings) -> str:
    return f"shorter than {settings.min_tokens} tokens"


def _store(
    settings: TokenizedSettings,
    source: Source,
    source_digest: str,
    tokenizer: Tokenizer,
    split: Split,
) -> TokenStore:
    limit = settings.train_documents if split == "train" else settings.validation_documents
    where = f"data={settings.kind}, {split}"

    def write(writer: StoreWriter) -> None:
        skips = Skips()
        names: list[str] = []

        def texts() -> Iterator[str]:
            for text in source.texts(split, skips):
                names.append(text.name)
                yield text.text

        with progress(f"making tokens of {where}", source.total(split)) as advance:
            for i, ids in enumerate(tokenizer.encode(texts())):
                advance()
                for name, document in _documents(names[i], ids, tokenizer.begin, settings):
                    if len(document) < settings.min_tokens:
                        skips.add(_too_short(settings), name)
                        continue
                    if settings.max_tokens is not None and len(document) > settings.max_tokens:
                        skips.add(f"cut at {settings.max_tokens} tokens", name)
                        document = document[: settings.max_tokens]
                    writer.add(name, document)
                    if len(writer) == limit:
                        break
                if len(writer) == limit:
                    break
        skips.warn(where)
        if not len(writer):
            raise DataError(_nothing(where, skips))
        writer.skipped = dict(skips.counts)

    options = [
        _FORMAT,
        split,
        limit,
        settings.min_tokens,
        settings.max_tokens,
        settings.document_tokens,
        _split_settings(settings),
    ]
    key = _digest(source_digest, tokenizer.digest, options)
    return open_or_build(cache_folder(settings.cache) / "tokens" / key, tokenizer.vocab_size, write)


def _documents(
    name: str, ids: np.ndarray, begin: int | None, settings: TokenizedSettings
) -> Iterator[tuple[str, np.ndarray]]:
    """Cut a text of more than `document_tokens` tokens into documents; each has its begin token."""
    size = settings.document_tokens
    if size is None or len(ids) <= size:
        yield name, ids
        return
    first = np.array([] if begin is None else [begin], dtype=np.int64)
    body = ids[len(first) :]
    step = size - len(first)
    for start in range(0, len(body), step):
        part = body[start : start + step]
        yield f"{name}[tokens {start}:{start + len(part)}]", np.concatenate([first, part])


def _nothing(where: str, skips: Skips) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skips.counts.items())
    columns = any("without a string in" in reason for reason in skips.counts)
    remedy = "name the column that holds the text with data.text_column=, " if columns else ""
    return (
        f"{where}: no usable documents (left out: {reasons or 'none'}{skips.example()}): {remedy}"
        "give more text, a smaller data.min_tokens, or another share or split to hold out"
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
