import numpy as np
import pytest

from unimem.evaluation.statistics import (
    LEAST_P,
    by_position,
    compare,
    mean_nll,
    of_several,
    perplexity,
    position_edges,
    several_seeds,
)
from unimem.results.comparison import holm


def test_mean_is_weighted_by_tokens():
    nll, document = np.array([1.0, 1.0, 1.0, 5.0]), np.array([0, 0, 0, 1])
    estimate = mean_nll(nll, document)
    assert (estimate.mean, estimate.documents, estimate.tokens) == (2.0, 2, 4)
    # Of four equally likely draws of two documents, two are the same document twice.
    assert (estimate.low, estimate.high) == (1.0, 5.0)


def test_one_document_has_no_interval():
    estimate = mean_nll(np.array([1.0, 3.0]), np.array([7, 7]))
    assert estimate.mean == 2.0 and np.isnan(estimate.low) and np.isnan(estimate.high)


def test_equal_readings_differ_by_nothing():
    nll, document = np.random.default_rng(0).random(40), np.repeat(np.arange(4), 10)
    difference = compare(nll, nll, document)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)
    assert difference.better == 0 and difference.smallest_effect == 0
    assert difference.perplexity_ratio == (1, 1, 1)


def test_constant_difference_is_certain():
    nll, document = np.random.default_rng(0).random(40), np.repeat(np.arange(4), 10)
    difference = compare(nll, nll + 0.5, document)
    assert difference.low == pytest.approx(-0.5) == difference.high == difference.mean
    assert difference.better == difference.documents == 4
    assert difference.perplexity_ratio[0] == pytest.approx(np.exp(-0.5))


def test_pairing_takes_out_what_documents_share():
    rng = np.random.default_rng(1)
    document = np.repeat(np.arange(50), 20)
    shared = np.repeat(rng.normal(3, 1, 50), 20)
    a, b = shared + rng.normal(0, 0.1, 1000), shared + 0.1 + rng.normal(0, 0.1, 1000)
    paired, alone = compare(a, b, document), mean_nll(a, document)
    assert paired.high < 0
    assert paired.high - paired.low < (alone.high - alone.low) / 20


def test_known_variance():
    """The mean of D documents of equal length has standard error sd / sqrt(D)."""
    effect = np.random.default_rng(2).normal(0, 1, 400)
    document = np.repeat(np.arange(400), 5)
    difference = compare(np.repeat(effect, 5), np.zeros(2000), document)
    error = effect.std() / 20
    assert difference.high - difference.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert difference.smallest_effect == pytest.approx(2.8 * error, rel=0.08)


def test_interval_covers_the_truth_as_often_as_it_says():
    """Documents of unequal length, dependent tokens: about 95 of 100 intervals hold the mean."""
    rng, covered, naive = np.random.default_rng(3), 0, 0
    for trial in range(200):
        lengths = rng.integers(5, 40, 60)
        document = np.repeat(np.arange(60), lengths)
        nll = rng.normal(2, 0.5, 60)[document] + rng.normal(0, 0.5, len(document))
        estimate = mean_nll(nll, document, seed=trial)
        covered += estimate.low <= 2 <= estimate.high
        naive += abs(nll.mean() - 2) <= 1.96 * nll.std() / np.sqrt(len(nll))
    assert 180 <= covered <= 198
    assert naive < 120


def test_many_documents_are_drawn_in_parts():
    effect = np.random.default_rng(4).normal(0, 1, 3000)
    estimate = mean_nll(effect, np.arange(3000))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 / np.sqrt(3000), rel=0.08)


def test_buckets_hold_their_positions():
    document = np.array([0, 0, 0, 1, 1])
    position = np.array([0, 1, 2, 0, 1])
    curve = by_position(np.array([1.0, 2.0, 9.0, 3.0, 4.0]), document, position, [0, 1, 3])
    assert [estimate.mean for estimate in curve] == [2.0, 5.0]
    assert [(estimate.documents, estimate.tokens) for estimate in curve] == [(2, 2), (2, 3)]


def test_buckets_are_segments_or_their_doublings():
    assert position_edges(511, 64) == [0, 64, 128, 192, 256, 320, 384, 448, 512]
    assert position_edges(16 * 8, 8)[-2:] == [120, 128]
    assert position_edges(16 * 8 + 1, 8) == [0, 8, 16, 32, 64, 128, 256]
    assert position_edges(1000, 10) == [0, 10, 20, 40, 80, 160, 320, 640, 1280]


def test_seeds_that_differ_by_more_than_documents_give_students_interval():
    rng, document = np.random.default_rng(5), np.repeat(np.arange(100), 10)
    models = np.array([-0.3, -0.2, -0.1, 0.0, 0.1])
    differences = models[:, None] + rng.normal(0, 0.01, (5, 1000))
    estimate = several_seeds(differences, document)
    assert estimate.mean == pytest.approx(-0.1, abs=1e-3)
    error = models.std(ddof=1) / np.sqrt(5)
    assert estimate.seed_error == pytest.approx(error, rel=0.02)
    # Student's 97.5 % quantile with four degrees of freedom is 2.776.
    assert estimate.high - estimate.low == pytest.approx(2 * 2.776 * error, rel=0.02)
    # t = -0.1 / error = -1.414; the documents' part is small.
    assert estimate.p == pytest.approx(0.2302, abs=0.005)
    alone = several_seeds(differences[:1], document)
    assert alone.high - alone.low < 0.01 and alone.seed_error == 0


def test_seeds_that_agree_leave_the_interval_of_documents():
    effect = np.random.default_rng(6).normal(0, 1, 200)
    same = several_seeds(np.stack([effect] * 4), np.arange(200))
    once = mean_nll(effect, np.arange(200))
    assert (same.mean, same.low, same.high) == pytest.approx((once.mean, once.low, once.high))
    assert same.of_documents == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("shift", [-0.3, -0.1, 0.05, 0.2, 1.0])
def test_p_is_below_5_percent_where_the_interval_leaves_zero_out(shift):
    rng = np.random.default_rng(7)
    differences = shift + rng.normal(0, 0.5, 30) + rng.normal(0, 0.05, (3, 1))
    estimate = several_seeds(differences, np.arange(30))
    assert (estimate.p < 0.05) == (not estimate.low <= 0 <= estimate.high)
    mirrored = several_seeds(-differences, np.arange(30))
    assert mirrored.p == pytest.approx(estimate.p, rel=0.2)


def test_p_of_nothing_is_1_and_of_certainty_the_least_there_is():
    document = np.arange(5)
    assert several_seeds(np.zeros((3, 5)), document).p == 1
    assert several_seeds(np.ones((3, 5)), document).p == pytest.approx(LEAST_P)
    assert several_seeds(np.ones((3, 1)), np.zeros(1)).p == 1  # a single document


def test_jackknife_of_a_difference_is_its_spread_over_seeds():
    rng = np.random.default_rng(8)
    losses = rng.normal(2, 0.3, (2, 4, 60))
    document = np.repeat(np.arange(20), 3)
    made = of_several(losses, document, lambda means: means[0] - means[1])
    expected = several_seeds(losses[0] - losses[1], document)
    assert [made.mean, made.low, made.high] == pytest.approx(
        [expected.mean, expected.low, expected.high]
    )
    assert made.seed_error == pytest.approx(expected.seed_error)


def test_a_ratio_of_proportional_gains_is_certain():
    gains = np.random.default_rng(9).normal(1, 0.2, (3, 40))
    losses = np.stack([gains, 0.25 * gains])
    made = of_several(losses, np.arange(40), lambda means: means[1] / means[0])
    assert (made.low, made.mean, made.high) == pytest.approx((0.25, 0.25, 0.25))


def two_levels(rng, ratio, seeds=3, documents=60):
    """Give differences [K, D] without an effect; seeds vary by `ratio` standard errors."""
    of_documents = rng.normal(0, np.sqrt(documents), documents)
    return of_documents + rng.normal(0, ratio, (seeds, 1))


@pytest.mark.parametrize("ratio", [0.5, 3, 20])
def test_three_seeds_cover_the_truth_however_much_they_differ(ratio):
    rng, covered = np.random.default_rng(10), 0
    for trial in range(300):
        estimate = several_seeds(two_levels(rng, ratio), np.arange(60), seed=trial)
        covered += estimate.low <= 0 <= estimate.high
    # Of 300 at a coverage of 93 %, 267 or fewer are seen in one case of a hundred.
    assert covered > 267


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 2, 5, 20])
def test_coverage_and_false_claims_over_three_seeds(ratio):
    """No effect: 95 % intervals cover it, and of 28 comparisons with Holm's p hardly any errs."""
    rng, covered, false, studies = np.random.default_rng(11), 0, 0, 80
    for study in range(studies):
        estimates = [
            several_seeds(two_levels(rng, ratio), np.arange(60), seed=28 * study + i)
            for i in range(28)
        ]
        covered += sum(estimate.low <= 0 <= estimate.high for estimate in estimates)
        false += min(holm([estimate.p for estimate in estimates])) < 0.05
    assert covered / (28 * studies) >= 0.935
    # At 5 %, more than 9 of 80 are seen in one case of a hundred.
    assert false <= 9


def test_perplexity_of_a_loss_beyond_floats_is_infinite():
    assert perplexity(0.0) == 1 and perplexity(1e4) == np.inf and np.isnan(perplexity(np.nan))
    assert perplexity([1.0, 710.0]).tolist() == [pytest.approx(np.e), np.inf]
