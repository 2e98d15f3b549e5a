import math

import pytest

from unimem.evaluation.student import quantile, tail


@pytest.mark.parametrize(
    ("freedom", "alpha", "t"),
    [
        (1, 0.05, 12.7062047362),
        (2, 0.05, 4.3026527297),
        (2, 0.002, 22.3271247701),
        (5, 0.01, 4.0321429836),
        (30, 0.05, 2.0422724563),
        (120, 0.001, 3.3734538),
    ],
)
def test_tabled_quantiles(freedom, alpha, t):
    assert quantile(alpha, freedom) == pytest.approx(t, rel=1e-8)
    assert tail(t, freedom) == pytest.approx(alpha, rel=1e-6)


def test_one_degree_of_freedom_is_cauchy_and_two_have_a_closed_form():
    for t in (0.0, 1e-3, 0.5, 1.0, 7.0, 1e4):
        assert tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-6)
        assert tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6)


@pytest.mark.parametrize("freedom", [1, 2, 2.7, 9, 59, 199, 10_000])
@pytest.mark.parametrize("alpha", [0.999, 0.3, 0.05, 1e-4, 1e-9])
def test_quantile_inverts_the_tail(freedom, alpha):
    assert tail(quantile(alpha, freedom), freedom) == pytest.approx(alpha, rel=1e-8)


def test_certainty_has_no_width():
    assert quantile(1.0, 3) == 0.0 and tail(0.0, 3) == 1.0
