import math

import numpy as np
import pytest

from unimem.data.build import build_corpus
from unimem.data.urn import UrnOracle, sample


@pytest.mark.parametrize("memory", [0, 1, 3, 4, 8, 100, None])
@pytest.mark.parametrize("segment_length", [1, 3, 4, 50])
def test_oracle_is_its_definition(segment_length, memory):
    ids = sample(np.random.default_rng(1), 3, 0.5, 23).tolist()
    expected = [math.log(3)]
    for t in range(1, 23):
        segment = (t - 1) // segment_length * segment_length
        visible = ids[0 if memory is None else max(0, segment - memory) : t]
        expected.append(-math.log((visible.count(ids[t]) + 0.5) / (len(visible) + 1.5)))
    found = UrnOracle(vocab_size=3, alpha=0.5).nll(np.array(ids), segment_length, memory)
    np.testing.assert_allclose(found, expected)


def beta_binomial_loss(n: int, V: int, a: float) -> float:
    """ln(n + aV) - E ln(N + a), N ~ BetaBinomial(n, a + 1, a (V - 1))."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    p, q = a + 1, a * (V - 1)
    law = [
        math.exp(math.log(math.comb(n, k)) + log_beta(k + p, n - k + q) - log_beta(p, q))
        for k in range(n + 1)
    ]
    assert sum(law) == pytest.approx(1)
    return math.log(n + a * V) - sum(w * math.log(k + a) for k, w in enumerate(law))


@pytest.mark.parametrize(("memory", "visible"), [(0, 32), (64, 96), (None, 480)])
def test_mean_loss_is_the_expected_loss(memory, visible):
    """Token 480 is predicted at position 479, the last of a segment of 32."""
    oracle = UrnOracle(vocab_size=64, alpha=0.1)
    documents = [sample(np.random.default_rng([3, i]), 64, 0.1, 481) for i in range(1500)]
    losses = np.array([oracle.nll(ids, 32, memory)[480] for ids in documents])
    error = losses.std() / math.sqrt(len(losses))
    assert abs(losses.mean() - beta_binomial_loss(visible, 64, 0.1)) < 3 * error < 0.15


def test_corpus_carries_its_oracle(settings):
    corpus = build_corpus(settings("urn", train_documents=3))
    assert corpus.oracle == UrnOracle(vocab_size=64, alpha=0.1)
    assert corpus.vocab_size == 64
    assert max(int(corpus.train.ids(i).max()) for i in range(3)) < 64
    assert corpus.train.name(2) == "train-2"
    assert corpus.summary().startswith("urn: 3 documents of 1536 tokens to train on, 128 documents")
