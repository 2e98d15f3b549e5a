"""Documents and corpora of known content for the tests."""

import numpy as np
from helpers.models import VOCAB

from unimem.data.documents import Corpus


class Listed:
    """Random documents of the given lengths."""

    def __init__(self, lengths, vocab_size=VOCAB):
        rng = np.random.default_rng(0)
        self.all = [rng.integers(vocab_size, size=n) for n in lengths]

    def __len__(self):
        return len(self.all)

    def ids(self, i):
        return self.all[i]

    def length(self, i):
        return len(self.all[i])

    def name(self, i):
        return f"document-{i}"


def make_corpus(documents, **values) -> Corpus:
    given = {
        "name": "listed",
        "train": documents,
        "validation": documents,
        "vocab_size": VOCAB,
        "digest": "0",
        "token_bytes": None,
        "tokenizer": None,
        "oracle": None,
        "skipped": {},
    }
    return Corpus(**(given | values))
