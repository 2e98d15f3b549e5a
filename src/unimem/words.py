"""What messages are made of: numbers in words, foreign text, errors of the system."""

import errno
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LARGE = 1e9
"""Numbers from here on are written with an exponent."""

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RUST = re.compile(r"\(os error (\d+)\)")
"""How libraries written in Rust name an error of the system."""

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal obeys instead of showing it, what turns the direction of text, and halves of
characters, which no file can hold; a line feed and a tab are none of them."""


def printable(text: str, *, one_line: bool = False) -> str:
    r"""Show control characters as escapes: \x1b, \u202e; with `one_line` \n and \t too."""
    shown = _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return shown.replace("\n", "\\n").replace("\t", "\\t") if one_line else shown


def system_error(error: Exception) -> str:
    """Return an error of the system in words: the file, why, and on a full disk the free space."""
    if not isinstance(error, OSError) or error.errno is None or error.strerror is None:
        return str(error)
    said = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    room = ""
    if error.errno in _FULL and error.filename is not None:
        room = f" ({_room(Path(os.fsdecode(error.filename)))}); what was written before is kept"
    return said + room


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that does not, as that of a full disk.

    Raises:
        OSError: of what is written within, with `path`, also where a library raises another error.
    """
    try:
        yield
    except OSError as error:
        # numpy counts the items that a full disk did not take, without a number of the error
        number = errno.ENOSPC if "requested and" in str(error) else error.errno
        if error.filename is not None or number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    except Exception as error:
        found = _RUST.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _room(path: Path) -> str:
    while not path.exists() and path != path.parent:
        path = path.parent
    found = os.statvfs(path)
    free = counted(found.f_bavail * found.f_frsize, "byte")
    return f"{free} free, room for {counted(found.f_favail, 'file')}" if found.f_files else free


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Count a noun: `1 layer`, `2 layers`, `2 entries`; thousands are parted as in `12,000`."""
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, rounded."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes:.0f} min"
    hours, rest = divmod(round(minutes), 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


def written(value: float, form: str) -> str:
    """Write a number in a format; of a very large one the first digits only."""
    if math.isfinite(value) and abs(value) >= LARGE:
        return f"{100 * value:.3g}%" if form.endswith("%") else f"{value:.3g}"
    return f"{value:{form}}"
