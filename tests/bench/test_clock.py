"""Peaks are seen, and memory that is not there is an error."""

import pytest
import torch

from unimem.bench.timer import Clock, bounded_memory, compared
from unimem.training.out_of_memory import is_oom

CPU = torch.device("cpu")
CLOCK = Clock(device=CPU, threads=1)


def test_peak_sees_what_a_call_holds_for_a_while():
    size = 64 * 2**20

    def call():
        torch.ones(size // 4)  # freed before the call ends

    call()
    peak = CLOCK.peak_bytes(call)
    assert peak is None or 0.9 * size <= peak <= 1.3 * size
    assert not CLOCK.peak_bytes(lambda: None) or CLOCK.peak_bytes(lambda: None) < 0.1 * size


def test_calls_are_measured_in_turn_after_one_that_is_not_counted():
    order = []
    times = CLOCK.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_ratio_of_the_least_and_median_of_neighbours():
    found = compared([4.0, 3.0, 8.0], [2.0, 1.0, 2.0])
    assert (found["ms"], found["vanilla_ms"]) == (3000, 1000)
    assert (found["ratio"], found["ratio_median"]) == (3, 3)
    assert (found["ratio_low"], found["ratio_high"]) == (2, 4)


def test_memory_that_is_not_there_is_an_error_and_the_bound_goes():
    with pytest.raises(RuntimeError) as caught, bounded_memory(CPU):
        torch.empty(10**13)
    assert is_oom(caught.value)
    assert not is_oom(RuntimeError("something else"))
    assert len(bytearray(1000)) == 1000
