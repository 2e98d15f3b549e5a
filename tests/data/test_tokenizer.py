import json
import logging
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)

from unimem.data.documents import DataError
from unimem.data.tokenizer import (
    BEGIN,
    Tokenizer,
    _in_background,
    cached_bpe,
    load_hugging_face,
    pieces,
    train_bpe,
)

TEXTS = ["def f(x):\n    return x + 1\n" * 9, "größer als 3 €\n" * 5, "日本語 🙂\r\n\ttab\0"]
BPE = train_bpe(TEXTS, 300)


def test_bpe_spends_its_vocabulary():
    assert BPE.vocab_size == 300
    assert train_bpe(["ab"], 300).vocab_size == 258


def test_training_is_deterministic():
    assert train_bpe(TEXTS, 300).digest == BPE.digest
    assert train_bpe(TEXTS, 299).digest != BPE.digest
    assert train_bpe(TEXTS[:1], 300).digest != BPE.digest


@given(st.lists(st.text(), max_size=5))
def test_texts_come_back_and_bytes_add_up(texts):
    for text, ids in zip(texts, BPE.encode(texts), strict=True):
        assert ids[0] == BPE.begin
        assert BPE.decode(ids) == text
        assert BPE.token_bytes is not None
        assert BPE.token_bytes[ids].sum() == len(text.encode())


def test_a_special_token_in_a_document_is_text():
    (ids,) = BPE.encode([BEGIN])
    assert ids.tolist().count(BPE.begin) == 1
    assert BPE.token_bytes is not None and BPE.token_bytes[ids].sum() == len(BEGIN)


@pytest.mark.parametrize("text", ["x" * 600_000, "a line\n" * 100_000, "", "short"])
def test_long_texts_are_cut_into_pieces_that_add_up(text):
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert max(map(len, cut)) <= 1 << 18
    assert all(piece.endswith("\n") for piece in cut[:-1]) or "\n" not in text


def test_a_long_line_comes_back():
    text = "word " * 80_000
    (ids,) = BPE.encode([text])
    assert BPE.decode(ids) == text


def test_cached_tokenizer_is_the_trained_one(tmp_path, caplog):
    file = tmp_path / "tokenizers" / "a.json"
    assert cached_bpe(file, TEXTS, 300).digest == BPE.digest
    assert cached_bpe(file, ["never read"], 300).digest == BPE.digest
    file.write_text(file.read_text("utf-8")[:1000], "utf-8")
    with caplog.at_level(logging.WARNING):
        assert cached_bpe(file, TEXTS, 300).digest == BPE.digest
    assert "a.json is damaged" in caplog.text


def save(backend: tokenizers.Tokenizer, folder, **special: str) -> str:
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return str(folder)


def test_hugging_face_folder(tmp_path):
    backend = tokenizers.Tokenizer(models.BPE(*bpe_parts()))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    loaded = load_hugging_face(save(backend, tmp_path, bos_token="<s>", eos_token="</s>"))
    assert loaded.begin == backend.token_to_id("<s>")
    for text, ids in zip(TEXTS, loaded.encode(TEXTS), strict=True):
        assert ids[0] == loaded.begin and loaded.decode(ids) == text
        assert loaded.token_bytes is not None
        assert loaded.token_bytes[ids].sum() == len(text.encode())


def bpe_parts():
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    return {**vocab, "<s>": 256, "</s>": 257}, []


def test_bytes_of_a_sentencepiece_vocabulary():
    vocab = {"<unk>": 0, **{f"<0x{b:02X}>": b + 1 for b in range(256)}, "▁": 257, "ä": 258}
    vocab["▁ä"] = 259
    backend = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "ä")], byte_fallback=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer = Tokenizer(backend, begin=None)
    text = " ä ää€"
    (ids,) = tokenizer.encode([text])
    assert ids.tolist()[:3] == [259, 259, 258]
    assert tokenizer.token_bytes is not None
    assert tokenizer.token_bytes[ids].sum() == len(text.encode())


def test_tokens_that_do_not_tell_their_bytes(caplog):
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with caplog.at_level(logging.WARNING):
        assert Tokenizer(backend, begin=None).token_bytes is None
    assert "no bits per byte" in caplog.text


def test_truncation_and_padding_of_a_tokenizer_are_not_taken_over(tmp_path):
    BPE.save(tmp_path / "bpe.json")
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "bpe.json"))
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    (ids,) = Tokenizer(backend, begin=0).encode(TEXTS[:1])
    np.testing.assert_array_equal(ids, next(BPE.encode(TEXTS[:1])))


@pytest.mark.parametrize("name", ["no/such-tokenizer", "empty"])
def test_a_tokenizer_that_is_not_there(tmp_path, name):
    if name == "empty":
        name = str(tmp_path)
    with pytest.raises(DataError, match=rf"data.tokenizer={name} cannot be loaded .*: give bpe,"):
        load_hugging_face(name)


def own_tokenizers():
    """A tokenizer of each family that a model may bring."""
    sentencepiece = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 259, "ä": 260, "▁ä": 261}
    sentencepiece |= {f"<0x{b:02X}>": b + 3 for b in range(256)}
    level = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    level["<|endoftext|>"] = 256
    return [
        LlamaTokenizer(vocab=sentencepiece, merges=[("▁", "ä")]),
        GPT2Tokenizer(vocab=level, merges=[]),
        Qwen2Tokenizer(vocab=level, merges=[]),
    ]


@pytest.mark.parametrize("tokenizer", own_tokenizers(), ids=lambda t: type(t).__name__)
def test_what_is_saved_loads_as_what_encoded(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "hub")
    loaded = load_hugging_face(str(tmp_path / "hub"))
    loaded.save_pretrained(tmp_path / "run")
    again = load_hugging_face(str(tmp_path / "run"))
    assert (again.digest, again.begin) == (loaded.digest, loaded.begin)
    assert type(AutoTokenizer.from_pretrained(tmp_path / "run")) is type(tokenizer)
    text = "ä äb €\n"
    assert next(again.encode([text])).tolist() == next(loaded.encode([text])).tolist()


def test_a_trained_bpe_is_saved_for_transformers(tmp_path):
    BPE.save_pretrained(tmp_path)
    assert load_hugging_face(str(tmp_path)).digest == BPE.digest
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text, ids in zip(TEXTS, BPE.encode(TEXTS), strict=True):
        assert tokenizer(text)["input_ids"] == ids.tolist()
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_class_that_would_load_another_tokenizer_is_not_saved(tmp_path):
    other = own_tokenizers()[0]
    Tokenizer(BPE._backend, BPE.begin, pretrained=other).save_pretrained(tmp_path)
    assert load_hugging_face(str(tmp_path)).digest == BPE.digest


def test_a_folder_that_is_not_there_is_no_hub_id(tmp_path):
    with pytest.raises(DataError, match="there is no such folder"):
        load_hugging_face(str(tmp_path / "gone"))


def windows(monkeypatch):
    """Make windows so short that a test reads many of them."""
    monkeypatch.setattr("unimem.data.tokenizer._PIECE", 2000)
    monkeypatch.setattr("unimem.data.tokenizer._OVERLAP", 600)


LONG = (
    "".join(path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))),
    "größer 日本語 🙂 " * 3000,
    "\n\n   indented\t\tand  spaced   \r\n" * 1000,
    "no space at all, " * 2 + "x" * 9000 + " and on " * 900,
    " " * 30_000,
)


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_long_texts_have_the_tokens_of_the_whole(monkeypatch, text):
    whole = BPE._backend.encode(text, add_special_tokens=False).ids
    windows(monkeypatch)
    assert next(BPE.encode([text])).tolist() == [BPE.begin, *whole]


@given(st.text(st.sampled_from("ab \n'ß"), max_size=8000))
@settings(max_examples=25)
def test_any_long_text_has_the_tokens_of_the_whole(text):
    whole = BPE._backend.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        windows(patch)
        assert next(BPE.encode([text])).tolist() == [BPE.begin, *whole]


def test_long_texts_have_the_tokens_of_the_whole_without_words(monkeypatch):
    """SentencePiece has no words, and puts a space before every text that it is given."""
    llama = own_tokenizers()[0]
    backend = llama.backend_tokenizer
    text = LONG[0] + "ä ää  ä" * 2000
    whole = backend.encode(text, add_special_tokens=False).ids
    windows(monkeypatch)
    assert next(Tokenizer(backend, begin=None).encode([text])).tolist() == whole


def test_a_cut_that_changes_tokens_is_told(monkeypatch, caplog):
    windows(monkeypatch)
    monkeypatch.setattr("unimem.data.tokenizer._LONGEST_WINDOW", 3000)
    text = "return" * 1001
    bpe = train_bpe(["return" * 9] * 9, 300)
    with caplog.at_level(logging.WARNING):
        (ids,) = bpe.encode([text])
    assert bpe.decode(ids) == text
    assert "a text is cut at character" in caplog.text


def test_a_text_without_spaces_trains_in_time():
    """As one word it would be gone through as often as there are merges."""
    random.seed(0)
    text = "".join(random.choices("abcdefgh", k=400_000))
    begin = time.monotonic()
    assert train_bpe([text], 1500).vocab_size == 1500
    assert time.monotonic() - begin < 30


def test_training_can_be_interrupted():
    waiting = threading.Event()

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            _in_background(waiting.wait)
    finally:
        signal.signal(signal.SIGALRM, before)
        waiting.set()


def test_what_fails_in_training_is_raised():
    def texts():
        yield "a"
        raise DataError("no more")

    with pytest.raises(DataError, match="no more"):
        train_bpe(texts(), 300)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written .*data.cache="):
        cached_bpe(tmp_path / "file" / "a.json", TEXTS, 300)
