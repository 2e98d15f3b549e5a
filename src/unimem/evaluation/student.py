"""Student's t distribution for any number of degrees of freedom."""

import math

MOST_FREEDOM = 200.0
"""Degrees of freedom from which on the distribution is taken to change no more: the 95 % quantile
is 1.972 here, 1.960 in the limit."""


def tail(t: float, freedom: float) -> float:
    """Return P(|T| > t) for t >= 0: the incomplete beta function I_x(freedom/2, 1/2).

    x = freedom / (freedom + t^2); Abramowitz and Stegun 26.5.27.
    """
    a = min(freedom, MOST_FREEDOM) / 2
    x = a / (a + t * t / 2)
    # The continued fraction converges quickly below its mean only.
    if x < (a + 1) / (a + 2.5):
        return _beta_fraction(a, 0.5, x)
    return 1 - _beta_fraction(0.5, a, 1 - x)


def quantile(alpha: float, freedom: float) -> float:
    """Return t with `tail(t, freedom)` = alpha, for 0 < alpha <= 1."""
    if alpha >= 1:
        return 0.0
    freedom = min(freedom, MOST_FREEDOM)
    # log tail is concave in log t, and the density is below its power law: Newton's steps from
    # where the power law has this tail come down to the root, and never pass it.
    scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)
    log_density = scale - 0.5 * math.log(math.pi * freedom)
    power = log_density + (freedom + 1) / 2 * math.log(freedom)
    x = (math.log(2) + power - math.log(freedom) - math.log(alpha)) / freedom
    for _ in range(100):
        t = math.exp(x)
        area = tail(t, freedom)
        density = math.exp(log_density - (freedom + 1) / 2 * math.log1p(t * t / freedom))
        step = (math.log(alpha) - math.log(area)) * area / (2 * density * t)
        x -= step
        if abs(step) < 1e-12:
            break
    return math.exp(x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Return I_x(a, b) by its continued fraction (Abramowitz and Stegun 26.5.8, Lentz's method)."""
    if x == 0:
        return 0.0
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log1p(-x)) / a
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d)
            c = 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * fraction
