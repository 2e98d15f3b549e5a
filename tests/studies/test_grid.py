"""A grid's cells are counted before one is made."""

import time

import pytest

from unimem.config import ConfigError
from unimem.studies.cells import parse
from unimem.studies.grid import MOST_CELLS, combinations, len_of_range, num_values, values
from unimem.studies.study import expand


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("a=1", 1),
        ("a=[1,2]", 1),
        ("a=1,2,2", 3),
        ("a=choice(1,2)", 2),
        ("a=sort(3,1,2)", 3),
        ("a=shuffle(1,2)", 2),
        ("a=range(5)", 5),
        ("a=range(1,8,3)", 3),
        ("a=range(8,1,-3)", 3),
        ("a=range(1,8,-3)", 0),
        ("a=range(0.0,1.0,0.25)", 4),
        ("a=range(0,1,0.3)", 4),
        ("a=sort(range(1,8,3))", 3),
        ("a=shuffle(range(0,7))", 7),
        ("a=int(range(0,7))", 7),
        ("a=float(1,2)", 2),
    ],
)
def test_values_are_as_many_as_are_counted(line, count):
    (override,) = parse([line]).values()
    assert num_values(override) == count == len(values(override))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["seed=range(1000000000)"], "1,000,000,000 cells"),
        (["seed=sort(range(1000000000))"], "1,000,000,000 cells"),
        (["seed=shuffle(range(1000000000))"], "1,000,000,000 cells"),
        (["seed=range(0,1,1e-12)"], "1,000,000,000,0.. cells"),
        (["seed=range(0,1e300)"], "more than 1,000,000,000,000,000 cells"),
        ([f"{k}=range(100)" for k in "abcdefghi"], "100 values of a"),
        ([f"{k}=1,2,3,4" for k in "abcdefgh"], "65,536 cells"),
        (["seed=range(1,5,0)"], "a step that is not 0"),
        (["seed=range(1.0,5.0,0.0)"], "a step that is not 0"),
        (["seed=range(0,inf)"], "two ends that are numbers"),
        (["seed=range(nan,1)"], "two ends that are numbers"),
    ],
)
def test_too_many_cells_are_counted_at_once(lines, message):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        combinations([parse(lines)])
    with pytest.raises(ConfigError, match=message):
        expand([line for line in lines if line != "output=x"])
    assert time.monotonic() - start < 10


def test_as_many_as_are_allowed_are_made():
    grid = parse([f"a=range({MOST_CELLS // 10})", "b=range(10)"])
    assert len(combinations([grid])) == MOST_CELLS
    with pytest.raises(ConfigError, match="10,001 cells"):
        combinations([grid, parse(["a=1"])])


def test_an_interval_is_no_range():
    (override,) = parse(["a=range(0,3)"]).values()
    assert len_of_range(override.value()) == 3
    with pytest.raises(ConfigError, match="cannot be listed"):
        values(parse(["a=interval(0,1)"])["a"])
