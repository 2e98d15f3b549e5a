import math

import pytest

from unimem.config import compose
from unimem.training.schedule import learning_rate_factor


def factors(steps, *more):
    overrides = ["trainer.max_steps=101", "trainer.warmup_steps=10", *more]
    settings = compose(*(f"{o}" for o in overrides)).trainer
    return [learning_rate_factor(step, settings) for step in steps]


def test_warm_up_rises_in_a_line():
    assert factors(range(10)) == [pytest.approx(n / 10) for n in range(1, 11)]


def test_cosine_falls_along_half_a_wave_to_its_end():
    more = "trainer.final_learning_rate=0.1"
    half = 0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2
    assert factors([10, 55, 100, 200], more) == [1, pytest.approx(half), 0.1, 0.1]


def test_linear_stays_then_falls_over_the_last_share():
    more = (
        "trainer.schedule=linear",
        "trainer.decay_share=0.3",
        "trainer.final_learning_rate=0",
    )
    # 101 steps: the fall begins at step 71 and ends at step 100.
    expected = [1, 1, 1, pytest.approx(28 / 29), pytest.approx(1 / 29), 0]
    assert factors([10, 50, 71, 72, 99, 100], *more) == expected


@pytest.mark.parametrize("steps", [1, 5])
def test_runs_shorter_than_the_warm_up_end_on_the_way(steps):
    given = factors(range(steps), f"trainer.max_steps={steps}")
    assert given == [pytest.approx((n + 1) / 10) for n in range(steps)]
