"""Split the cases of a test between the quick suite and the slow tests."""

from collections.abc import Iterable
from typing import Any

import pytest


def each(n: int, values: Iterable[Any]) -> list[Any]:
    """Mark all but each n-th value as slow."""
    slow = pytest.mark.slow
    return [x if i % n == 0 else pytest.param(x, marks=slow) for i, x in enumerate(values)]
