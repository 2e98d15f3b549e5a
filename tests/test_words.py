import pytest

from unimem.words import duration, printable


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(9, "9 s"), (100, "2 min"), (3600, "1 h 00 min"), (3600 * 49, "2 days 1 h")],
)
def test_duration(seconds, words):
    assert duration(seconds) == words


def test_control_characters_are_shown():
    text = "a\x1b[2J\r\x07\x9b\u202e\ud800 é\t\n"
    assert printable(text) == "a\\x1b[2J\\r\\x07\\x9b\\u202e\\ud800 é\t\n"
    assert printable("a\n\t", one_line=True) == "a\\n\\t"
