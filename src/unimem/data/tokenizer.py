"""Byte-level BPE trained on the corpus, or the tokenizer of a Hugging Face model."""

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, final

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from unimem.data.documents import DataError, trained_vocabulary
from unimem.data.store import temporary_folder
from unimem.hub import ask_hub
from unimem.integrity import require_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

BEGIN = "<|endoftext|>"
TRAINING_CHARACTERS = 100_000_000
"""A BPE is trained on no more text than this: more of it changes little and takes long."""

# Encoding takes tens of bytes per character: these bound how much is encoded at a time.
_PIECE = 1 << 18
_PIECES = 16
_BATCH = 1 << 22
# Windows of a long text overlap by so many characters, and are joined at a token around which both
# have so many tokens in common.
_OVERLAP = 1 << 13
_COMMON = 16
_LONGEST_WINDOW = 1 << 22
_RUN = re.compile(r"\S{8192,}")
_WORD = 64

_SECONDS_BETWEEN_LINES = 15.0


@final
class Tokenizer:
    """Text to token ids; every text begins with `begin`, so that all of its bytes are predicted.

    Args:
        backend: the tokenizer proper.
        begin: id of the token put before each text; None for no such token.
        pretrained: the Hugging Face tokenizer that `backend` is taken from, if there is one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        begin: int | None,
        pretrained: "PreTrainedTokenizerFast | None" = None,
    ):
        self._pretrained = pretrained
        self._backend = backend
        # The spelling of a special token inside a document is text like any other.
        self._backend.encode_special_tokens = True
        self._backend.no_truncation()
        self._backend.no_padding()
        self.begin = begin
        self.vocab_size = max(backend.get_vocab().values()) + 1

    @cached_property
    def digest(self) -> str:
        """Return the sha256 of all that decides how a text is encoded.

        It is the same for a tokenizer and for its copy that `save_pretrained` wrote: what the
        Hugging Face class adds (a template for special tokens, truncation, padding) is not used.
        """
        parts: dict[str, Any] = json.loads(self._backend.to_str())
        for unused in ("version", "post_processor", "truncation", "padding"):
            parts.pop(unused, None)
        return hashlib.sha256(json.dumps([self.begin, parts]).encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> np.ndarray | None:
        """Count the UTF-8 bytes that each token stands for, int64 `[vocab_size]`.

        Special tokens stand for none. The counts of a document's tokens add up to its bytes exactly
        where the tokenizer is byte-level and does not normalize; the space that LLaMA's puts before
        a text is counted. None where tokens do not tell (WordPiece, for one).
        """
        decoder = json.dumps(json.loads(self._backend.to_str())["decoder"])
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, i in self._backend.get_vocab().items():
            if "ByteLevel" in decoder:
                sizes[i] = len(token)
            elif "ByteFallback" in decoder or "Metaspace" in decoder:
                is_byte = len(token) == 6 and token.startswith("<0x")
                sizes[i] = 1 if is_byte else len(token.replace("▁", " ").encode())
            else:
                logger.warning("this tokenizer does not tell bytes: no bits per byte")
                return None
        for i, token in self._backend.get_added_tokens_decoder().items():
            sizes[i] = 0 if token.special else len(token.content.encode())
        return sizes

    def encode(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Yield the token ids of each text, int64 `[n]`; many texts at a time, on all cores.

        A text above 256 Ki characters is encoded in windows that overlap, and gets the tokens that
        it would have as a whole: windows are joined where both have the same tokens. Only a text
        without such a place in 4 Mi characters (one letter repeated) is cut, and a line says so.
        """
        batch: list[str] = []
        size = 0
        for text in texts:
            if len(text) > _PIECE:
                yield from self._encode(batch)
                batch, size = [], 0
                yield self._with_begin(self._encode_long(text))
                continue
            batch.append(text)
            size += len(text)
            if size >= _BATCH:
                yield from self._encode(batch)
                batch, size = [], 0
        yield from self._encode(batch)

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of token ids `[n]`, without special tokens."""
        return self._backend.decode(ids.tolist())

    def save(self, file: Path) -> None:
        """Write the tokenizer to `file`, at once: a reader finds all of it or nothing."""
        _write_whole(file, self._backend.to_str().encode("utf-8"))

    def save_pretrained(self, folder: Path) -> None:
        """Write the files that `transformers.AutoTokenizer.from_pretrained(folder)` reads.

        What is loaded from there has the same digest. For a trained BPE, `AutoTokenizer` puts the
        begin-of-text token before a text as `encode` does.
        """
        if self._pretrained is not None:
            self._pretrained.save_pretrained(folder)
            if load_hugging_face(str(folder)).digest == self.digest:
                return
        _generic(self._backend, self.begin).save_pretrained(folder)

    def _encode(self, batch: list[str]) -> Iterator[np.ndarray]:
        for i in range(0, len(batch), _PIECES):
            for encoding in self._backend.encode_batch_fast(
                batch[i : i + _PIECES], add_special_tokens=False
            ):
                yield self._with_begin(np.array(encoding.ids, dtype=np.int64))

    def _with_begin(self, ids: np.ndarray) -> np.ndarray:
        return ids if self.begin is None else np.concatenate([[self.begin], ids])

    def _encode_long(self, text: str) -> np.ndarray:
        done: list[np.ndarray] = []
        windows = self._windows(text)
        window, first = next(windows), 0
        for following in windows:
            join = window.join(following)
            if join is not None:
                done.append(window.ids[first : join[0]])
                window, first = following, join[1]
            elif following.end - window.start <= _LONGEST_WINDOW:
                place = window.begins[first]
                (window,) = self._encode_windows(text, [(window.start, following.end)])
                first = int(np.searchsorted(window.begins, place))
            else:
                logger.warning(
                    "a text is cut at character %d: it has no border of words for so long that its "
                    "tokens there are not those of the whole",
                    window.end,
                )
                done.append(window.ids[first:])
                (window,), first = self._encode_windows(text, [(window.end, following.end)]), 0
        return np.concatenate([*done, window.ids[first:]])

    def _windows(self, text: str) -> Iterator["_Window"]:
        starts = range(0, len(text) - _OVERLAP, _PIECE - _OVERLAP)
        for i in range(0, len(starts), _PIECES):
            group = starts[i : i + _PIECES]
            yield from self._encode_windows(text, [(x, min(x + _PIECE, len(text))) for x in group])

    def _encode_windows(self, text: str, places: list[tuple[int, int]]) -> Iterator["_Window"]:
        encodings = self._backend.encode_batch(
            [text[start:end] for start, end in places], add_special_tokens=False
        )
        for (start, end), encoding in zip(places, encodings, strict=True):
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) + start
            ids = np.array(encoding.ids, dtype=np.int64)
            yield _Window(start, end, ids, offsets[:, 0], offsets[:, 1])


class _Window(NamedTuple):
    """Characters `start` to `end` of a text: their tokens, and where each begins and ends."""

    start: int
    end: int
    ids: np.ndarray
    begins: np.ndarray
    ends: np.ndarray

    def join(self, other: "_Window") -> tuple[int, int] | None:
        """Return the token with which `other` can go on here, by its index in both; None if none.

        Both have the same tokens around it. A quarter of the overlap at either side is left out:
        there a window lacks the characters that it would need.
        """
        quarter = (self.end - other.start) // 4
        span = (other.start + quarter, self.end - quarter)
        low, high = np.searchsorted(self.begins, span)
        for i in range(max(int(low), _COMMON), min(int(high), len(self.ids) - _COMMON)):
            j = int(np.searchsorted(other.begins, self.begins[i]))
            if j < _COMMON or self.ends[i - 1] > self.begins[i]:
                continue
            here, there = slice(i - _COMMON, i + _COMMON), slice(j - _COMMON, j + _COMMON)
            if np.array_equal(self.ids[here], other.ids[there]) and np.array_equal(
                self.begins[here], other.begins[there]
            ):
                return i, j
        return None


def _write_whole(file: Path, data: bytes) -> None:
    """Write a file so that a reader finds all of it or nothing."""
    folder = temporary_folder(file)
    try:
        temporary = folder / file.name
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces that a tokenizer can hold, after a line end where there is one."""
    start = 0
    while len(text) - start > _PIECE:
        end = text.rfind("\n", start, start + _PIECE) + 1 or start + _PIECE
        yield text[start:end]
        start = end
    yield text[start:]


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE; its vocabulary is smaller where the text yields no more merges."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    _in_background(lambda: backend.train_from_iterator(_limited(texts), trainer))
    return Tokenizer(backend, begin=backend.token_to_id(BEGIN))


def _in_background(train: Callable[[], object]) -> None:
    """Train in a thread: it takes minutes and heeds no signal, so that this one waits and logs.

    The exception of a signal leaves from here; the thread ends with the process.
    """
    failed: list[BaseException] = []

    def run() -> None:
        try:
            train()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    begin = last = time.monotonic()
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        if time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info("training the BPE: %.0f s so far", last - begin)
    if failed:
        raise failed[0]


def _limited(texts: Iterable[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        for piece in pieces(text):
            yield from _bounded_words(piece)
        size += len(text)
        if size >= TRAINING_CHARACTERS:
            logger.info("the BPE is trained on the first %d characters", size)
            return


def _bounded_words(piece: str) -> Iterator[str]:
    """Cut long runs without white space: in training each may be one word, and costs its square."""
    last = 0
    for run in _RUN.finditer(piece):
        yield piece[last : run.start()]
        for start in range(run.start(), run.end(), _WORD):
            yield piece[start : min(start + _WORD, run.end())]
        last = run.end()
    yield piece[last:]


def cached_bpe(file: Path, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Load a BPE from `file`, or train it and keep it there, with its checksum beside it.

    Raises:
        DataError: the file cannot be written.
    """
    checksum = file.with_name(f"{file.name}.sha256")
    if file.exists():
        try:
            data = file.read_bytes()
            if checksum.read_text("ascii").strip() != hashlib.sha256(data).hexdigest():
                raise ValueError("it is not as it was written")
            backend = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
            return Tokenizer(backend, begin=backend.token_to_id(BEGIN))
        except Exception as error:  # tokenizers raises nothing more special
            logger.warning("%s is damaged (%s); training it again", file, error)
    logger.info("training a byte-level BPE of %d tokens", vocab_size)
    tokenizer = train_bpe(texts, vocab_size)
    try:
        tokenizer.save(file)
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        _write_whole(checksum, digest.encode())
    except OSError as error:
        raise DataError(
            f"{file.parent} cannot be written ({error.strerror}): "
            "make room there, or name another folder with data.cache="
        ) from error
    return tokenizer


def _generic(backend: tokenizers.Tokenizer, begin: int | None) -> "PreTrainedTokenizerFast":
    """Wrap a tokenizer in the Hugging Face class that takes `tokenizer.json` as it is."""
    from transformers import PreTrainedTokenizerFast

    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    if begin is None:
        return PreTrainedTokenizerFast(tokenizer_object=copy, clean_up_tokenization_spaces=False)
    token = backend.id_to_token(begin)
    copy.post_processor = processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=copy,
        bos_token=token,
        eos_token=token,
        clean_up_tokenization_spaces=False,
    )


def holds_tokenizer(folder: Path) -> bool:
    """Return whether a folder holds the files of a Hugging Face tokenizer."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def load_hugging_face(name: str) -> Tokenizer:
    """Load the tokenizer of a local folder or of a hub id, `org/name` or `org/name@revision`.

    Code that comes with a tokenizer is never run.

    Raises:
        DataError: there is none, or it is not of the `tokenizers` library.
    """
    # Slow to import, and only needed where the user names a tokenizer.
    from transformers import AutoTokenizer

    folder = Path(name).expanduser()
    hub_id, _, revision = name.partition("@")
    if not folder.is_dir() and (folder.is_absolute() or name.count("/") > 1 or name[0] in ".~"):
        raise DataError(
            f"data.tokenizer={name}: there is no such folder (without data.tokenizer= it is that "
            "of the model, model.name=)"
        )
    try:
        if folder.is_dir():
            require_whole(folder.resolve())
            loaded = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        else:
            ask_hub()
            loaded = AutoTokenizer.from_pretrained(
                hub_id, revision=revision or "main", trust_remote_code=False
            )
    except Exception as error:  # many kinds, by what is missing
        trained = trained_vocabulary(folder)
        if trained is not None and not trained.startswith("tokenizer "):
            raise DataError(
                f"{name} was trained with the {trained} tokens, and holds no tokenizer: "
                f"use data={trained.split()[0]}, or weights that were trained on text"
            ) from error
        reason = str(error).partition("\n")[0]
        raise DataError(
            f"data.tokenizer={name} cannot be loaded ({reason}): "
            "give bpe, a folder that holds a tokenizer, or a hub id"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"data.tokenizer={name} has no tokenizer.json: save it as a fast tokenizer")
    begin = loaded.bos_token_id if loaded.bos_token_id is not None else loaded.eos_token_id
    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    return Tokenizer(copy, begin=begin, pretrained=loaded)
