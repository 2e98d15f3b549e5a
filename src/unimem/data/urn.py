"""Documents that are draws from word laws of their own, and the loss nobody can go below.

Every document's law over the vocabulary is drawn from a symmetric Dirichlet(alpha), its tokens
independently from that law: Polya's urn. The simplest corpus on which a memory must help.
"""

from dataclasses import dataclass
from typing import final

import numpy as np

from unimem.data.documents import Corpus
from unimem.data.generated import generated_corpus
from unimem.data.settings import UrnSettings


def sample(rng: np.random.Generator, vocab_size: int, alpha: float, length: int) -> np.ndarray:
    """Draw a word law and a document from it: int64 `[length]`, all below `vocab_size`."""
    law = np.cumsum(rng.dirichlet(np.full(vocab_size, alpha)))[:-1]
    return np.searchsorted(law, rng.random(length), side="right").astype(np.int64)


@final
@dataclass(frozen=True, kw_only=True)
class UrnOracle:
    """Polya's urn: p(w) = (n_w + alpha) / (n + alpha V), with n_w counted over the visible tokens.

    Draws are exchangeable, so this is Bayes' rule, exact for every segment length and memory.
    """

    vocab_size: int
    alpha: float

    def nll(self, ids: np.ndarray, segment_length: int, memory: int | None) -> np.ndarray:
        """Return nats per token `[n]`; see `unimem.data.documents.Oracle`."""
        V = self.vocab_size
        tokens = ids.tolist()
        probability = [1 / V]
        counts, visible = [0] * V, 0
        for t in range(1, len(tokens)):
            here = t - 1
            if here % segment_length == 0:
                start = 0 if memory is None else max(0, here - memory)
                counts, visible = np.bincount(ids[start:here], minlength=V).tolist(), here - start
            counts[tokens[here]] += 1
            visible += 1
            probability.append((counts[tokens[t]] + self.alpha) / (visible + self.alpha * V))
        return -np.log(probability)


def urn_corpus(settings: UrnSettings) -> Corpus:
    """Build the corpus `data=urn`; its documents are drawn when they are read."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        return sample(rng, settings.vocab_size, settings.alpha, settings.length)

    oracle = UrnOracle(vocab_size=settings.vocab_size, alpha=settings.alpha)
    return generated_corpus(settings, settings.vocab_size, draw, oracle)
