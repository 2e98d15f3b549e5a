import math
from itertools import product

import numpy as np
import pytest

from unimem.data.markov import MarkovOracle, sample


def slow_nll(ids, segment_length, memory, states, alpha):
    """The definition of the oracle, token by token."""
    losses = [math.log(states)]
    for t in range(1, len(ids)):
        here = t - 1
        segment = here // segment_length * segment_length
        first = 0 if memory is None else max(0, segment - memory)
        visible = ids[first : here + 1]
        followers = [j for i, j in zip(visible, visible[1:], strict=False) if i == ids[here]]
        n, total = followers.count(ids[t]), len(followers)
        losses.append(-math.log((n + alpha) / (total + alpha * states)))
    return losses


@pytest.mark.parametrize("memory", [0, 1, 3, 4, 8, 100, None])
@pytest.mark.parametrize("segment_length", [1, 3, 4, 50])
def test_oracle_is_its_definition(segment_length, memory):
    ids = sample(np.random.default_rng(1), 3, 0.5, 23)
    found = MarkovOracle(states=3, alpha=0.5).nll(ids, segment_length, memory)
    np.testing.assert_allclose(found, slow_nll(ids.tolist(), segment_length, memory, 3, 0.5))


def test_oracle_is_bayes_rule_by_enumeration():
    """Two states: integrate over the chain on a grid; the whole past is visible."""
    alpha, points = 2.0, 2000
    grid = (np.arange(points) + 0.5) / points
    prior = (grid * (1 - grid)) ** (alpha - 1)
    prior /= prior.sum()

    def probability(walk):
        """Of a walk, its first state given: rows are independent, so each has an integral."""
        rows = 1.0
        for state in (0, 1):
            followers = [j for i, j in zip(walk, walk[1:], strict=False) if i == state]
            ones = sum(followers)
            rows *= (prior * grid**ones * (1 - grid) ** (len(followers) - ones)).sum()
        return rows

    for walk in product((0, 1), repeat=6):
        nll = MarkovOracle(states=2, alpha=alpha).nll(np.array(walk), 6, None)
        exact = [math.log(2)]
        exact += [
            -math.log(probability(walk[: t + 1]) / probability(walk[:t])) for t in range(1, 6)
        ]
        np.testing.assert_allclose(nll, exact, rtol=1e-5)


def test_predictions_are_a_law_over_the_next_state():
    oracle = MarkovOracle(states=4, alpha=0.1)
    past = sample(np.random.default_rng(0), 4, 0.1, 9).tolist()
    for length in range(1, 10):
        ends = [oracle.nll(np.array([*past[:length], j]), 3, 2)[-1] for j in range(4)]
        assert np.exp(-np.array(ends)).sum() == pytest.approx(1)


def test_expected_losses():
    """The loss that memories leave on the last of 8 segments of 64, V = 8, alpha = 0.1."""
    oracle = MarkovOracle(states=8, alpha=0.1)
    walks = [sample(np.random.default_rng([7, i]), 8, 0.1, 512) for i in range(1500)]
    for memory, expected in [(0, 0.995), (64, 0.755), (128, 0.707), (512, 0.657)]:
        losses = [oracle.nll(walk, 64, memory)[448:].mean() for walk in walks]
        assert np.mean(losses) == pytest.approx(expected, abs=0.02)


def test_more_memory_never_hurts_on_average():
    oracle = MarkovOracle(states=8, alpha=0.1)
    walks = [sample(np.random.default_rng([8, i]), 8, 0.1, 512) for i in range(200)]
    losses = [
        np.mean([oracle.nll(walk, 64, memory).mean() for walk in walks])
        for memory in (0, 64, 128, 256, None)
    ]
    assert losses == sorted(losses, reverse=True)


def test_walks_follow_their_chain():
    """With alpha large every row is nearly uniform; with alpha tiny nearly one state follows."""
    rng = np.random.default_rng(0)
    flat = sample(rng, 4, 1e6, 20000)
    table = np.bincount(flat[:-1] * 4 + flat[1:], minlength=16) / len(flat)
    np.testing.assert_allclose(table, 1 / 16, atol=0.01)
    sharp = sample(rng, 4, 1e-4, 1000)
    followers = {(int(i), int(j)) for i, j in zip(sharp, sharp[1:], strict=False)}
    assert len(followers) <= 5


def test_documents_are_a_pure_function_of_seed_split_and_index(settings):
    from unimem.data.build import build_corpus

    one = build_corpus(settings("markov", train_documents=9))
    two = build_corpus(settings("markov", train_documents=9))
    backwards = [two.train.ids(i) for i in reversed(range(9))][::-1]
    for i in range(9):
        np.testing.assert_array_equal(one.train.ids(i), backwards[i])
    assert one.digest == two.digest
    other = build_corpus(settings("markov", train_documents=9, seed=1))
    assert other.digest != one.digest
    laws = [one.train.ids(0), one.train.ids(1), one.validation.ids(0), other.train.ids(0)]
    assert len({ids.tobytes() for ids in laws}) == 4
    assert all(ids.dtype == np.int64 and ids.shape == (512,) for ids in laws)
    with pytest.raises(IndexError, match="document 9 of 9"):
        one.train.ids(9)
