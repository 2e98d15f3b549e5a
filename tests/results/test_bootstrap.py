import numpy as np
import pytest

from unimem.evaluation.statistics import RESAMPLES, several_seeds
from unimem.results.bootstrap import interval, resample


@pytest.mark.parametrize("documents", [7, 1500])
def test_resamples_are_those_of_the_comparisons(documents):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 5, size=documents)
    document = np.repeat(np.arange(documents), lengths)
    losses = generator.normal(size=(2, 3, len(document)))
    drawn = resample(losses, document)
    assert drawn.shape == (2, RESAMPLES)
    for values, expected in (
        (drawn[0], several_seeds(losses[0], document)),
        (drawn[0] - drawn[1], several_seeds(losses[0] - losses[1], document)),
    ):
        assert interval(values) == pytest.approx((expected.low, expected.high))
