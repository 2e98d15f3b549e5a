import errno

import pytest

from unimem.words import duration, printable, system_error, writing


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


def test_an_error_of_the_system_names_the_file_and_the_room(tmp_path):
    path = tmp_path / "a" / "b"
    for raised in (
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("8 requested and 0 written"),
        Exception("No space left on device (os error 28)"),
    ):
        with pytest.raises(OSError) as told, writing(path):  # noqa: PT011 - looked at below
            raise raised
        line = system_error(told.value)
        assert line.startswith(f"{path}: No space left on device (") and "free" in line
    with pytest.raises(FileNotFoundError) as gone, writing(path):
        path.open("w")
    assert system_error(gone.value) == f"{path}: No such file or directory"
    with pytest.raises(KeyError), writing(path):
        raise KeyError
    assert system_error(OSError("in words")) == "in words"
