import pytest

from unimem.words import duration


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9, "9 s"), (100, "2 min"), (3600, "1 h 00 min"), (3600 * 49, "2 days 1 h")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words
