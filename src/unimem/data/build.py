"""From the `data` settings to a corpus."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from unimem.data.documents import NO_DOCUMENTS, Corpus, DataError
from unimem.data.github import github_source
from unimem.data.markov import markov_corpus
from unimem.data.pg19 import pg19_source
from unimem.data.progress import progress
from unimem.data.settings import (
    DataSettings,
    GitHubSettings,
    MarkovSettings,
    PG19Settings,
    StdlibSettings,
    TextSettings,
    TokenizedSettings,
    UrnSettings,
)
from unimem.data.sources import Skips, Source, Split
from unimem.data.stdlib import stdlib_source
from unimem.data.store import StoreWriter, TokenStore, open_or_build
from unimem.data.text import text_source
from unimem.data.tokenizer import TRAINING_CHARACTERS, Tokenizer, cached_bpe, load_hugging_face
from unimem.data.urn import urn_corpus

# To be raised when the same source, tokenizer and settings make other tokens than before.
_FORMAT = 1


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


def cache_folder(cache: str | None) -> Path:
    """Return the folder for tokenizers and tokens: `cache`, $UNIMEM_CACHE or ~/.cache/unimem."""
    return Path(cache or os.environ.get("UNIMEM_CACHE") or "~/.cache/unimem").expanduser()


def _text_corpus(settings: TokenizedSettings, source: Source, train: bool) -> Corpus:
    source_digest = source.digest()
    tokenizer = _tokenizer(settings, source, source_digest)
    stores: dict[Split, TokenStore] = {}
    splits: tuple[Split, ...] = ("train", "validation") if train else ("validation",)
    for split in splits:
        stores[split] = _store(settings, source, source_digest, tokenizer, split)
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
    return settings.model_dump(include={"held_out", "validation_split", "text_column"})


def _tokenizer(settings: TokenizedSettings, source: Source, source_digest: str) -> Tokenizer:
    if settings.tokenizer != "bpe":
        return load_hugging_face(settings.tokenizer)
    options = [settings.vocab_size, TRAINING_CHARACTERS, _split_settings(settings)]
    file = cache_folder(settings.cache) / "tokenizers" / f"{_digest(source_digest, options)}.json"
    # What is left out is counted and named when the tokens are made.
    texts = (text.text for text in source.texts("train", Skips()))
    return cached_bpe(file, texts, settings.vocab_size)


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
                if len(ids) < settings.min_tokens:
                    skips.add(f"shorter than {settings.min_tokens} tokens", names[i])
                    continue
                if settings.max_tokens is not None and len(ids) > settings.max_tokens:
                    skips.add(f"cut at {settings.max_tokens} tokens", names[i])
                    ids = ids[: settings.max_tokens]
                writer.add(names[i], ids)
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
        _split_settings(settings),
    ]
    key = _digest(source_digest, tokenizer.digest, options)
    return open_or_build(cache_folder(settings.cache) / "tokens" / key, tokenizer.vocab_size, write)


def _nothing(where: str, skips: Skips) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in skips.counts.items())
    return (
        f"{where}: no usable documents (left out: {reasons or 'none'}): "
        "give more text, a smaller data.min_tokens, or another share or split to hold out"
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
